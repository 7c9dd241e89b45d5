"""Every key of config/reference.yaml has its effect: each is in this table with the tests that show it by behaviour.

A key that is not here fails, and so does a test that is gone, or that does not have the key in what it does.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from test_policy_reference import IN_COMMENTS, keys_known

from proxy.policy.reader import key_hints
from proxy.policy.schema import JwtSource, Policy

TESTS = Path(__file__).resolve().parents[2]

# Keys that do nothing yet, or that have one word, and why they are in the language.
WAITING = {
    "version": "there is one version of the language",
    "log.bodies": "bodies are never logged; the word is there so that nobody looks for another",
}

BEHAVIOUR = "wire/gateway/test_keys_by_behaviour.py"
LIFE, DOOR, HTTP = (
    "wire/gateway/test_gateway_life.py",
    "wire/ingress/test_ingress_limits.py",
    "wire/ingress/test_relay_http.py",
)
CALLS, TIME, HOSTS = (
    "wire/egress/test_egress_calls.py",
    "wire/egress/test_egress_deadlines.py",
    "wire/egress/test_forward_proxy.py",
)
MONEY, CAPS = "wire/egress/test_money_calls.py", "unit/egress/test_money_caps.py"
ANSWERS, RUNS, INSTANCES = (f"wire/tasks/test_tasks_{name}.py" for name in ("answers", "runs", "instances"))
POSTGRES = "wire/postgres/test_postgres_pooler_complaints.py"

# key: "FILE::TEST" …
EFFECTS: dict[str, tuple[str, ...]] = {
    "routes[].background.mode": (f"{ANSWERS}::test_where_it_is_always_so_every_request_is_run_later_and_a_stream_is_kept_whole",),
    "routes[].background.concurrency": (f"{INSTANCES}::test_concurrency_holds_over_both_and_gauges_are_the_same_on_each",),
    "routes[].background.timeout": (f"{RUNS}::test_its_time_is_the_backgrounds_and_not_the_routes",),
    "routes[].background.max_queued": (f"{ANSWERS}::test_a_full_queue_is_503_with_when_to_come_again",),
    "routes[].background.retry.attempts": (f"{RUNS}::test_backoff_doubles_up_to_its_bound",),
    "routes[].background.retry.backoff.first": (f"{RUNS}::test_backoff_doubles_up_to_its_bound",),
    "routes[].background.retry.backoff.max": (f"{RUNS}::test_backoff_doubles_up_to_its_bound",),
    "tasks.url": (f"{RUNS}::test_a_gateway_that_is_killed_leaves_its_tasks_to_the_next_within_half_a_minute",),
    "tasks.keep": (f"{RUNS}::test_results_are_kept_for_so_long_and_gone_for_as_long_again",),
    "tasks.max_body": (f"{ANSWERS}::test_a_body_that_is_too_large_to_be_kept_is_413_and_a_result_is_a_failure",),
    "tasks.max_result": (f"{ANSWERS}::test_a_body_that_is_too_large_to_be_kept_is_413_and_a_result_is_a_failure",),
    "tasks.callbacks": ("wire/tasks/test_callbacks.py::test_a_host_that_the_policy_lists_no_more_is_not_called_until_it_does_again",),
    "tasks.secret": ("wire/tasks/test_callbacks.py::test_a_host_that_the_policy_lists_no_more_is_not_called_until_it_does_again",),
    "schedules": ("wire/tasks/test_scheduler.py::test_what_is_due_is_queued_with_its_request_and_its_own_user",),
    "app.port": ("unit/cli/test_cli_init.py::test_a_port_in_the_code_is_the_apps_port",),
    "app.url": (f"{LIFE}::test_app_url_fronts_an_app_that_something_else_runs",),
    "app.ready.path": (f"{LIFE}::test_a_hung_app_is_replaced_and_a_busy_one_is_not",),
    "app.ready.interval": (f"{LIFE}::test_a_hung_app_is_replaced_and_a_busy_one_is_not",),
    "app.ready.timeout": (f"{LIFE}::test_a_hung_app_is_replaced_and_a_busy_one_is_not",),
    "app.start_timeout": (f"{BEHAVIOUR}::test_start_timeout_ends_an_app_that_is_not_ready_by_then",),
    "app.stop_timeout": ("wire/app/test_app_exits.py::test_who_ignores_it_has_stop_timeout_though_the_shell_is_gone",),
    "app.stop_signal": ("wire/app/test_app_exits.py::test_the_stop_signal_is_the_policys",),
    "app.restart.backoff": (f"{BEHAVIOUR}::test_max_backoff_is_the_longest_pause_between_starts",),
    "app.restart.max_backoff": (f"{BEHAVIOUR}::test_max_backoff_is_the_longest_pause_between_starts",),
    "app.restart.give_up_after": (f"{LIFE}::test_an_app_that_keeps_crashing_is_given_up_with_its_status",),
    "app.hold": (f"{HTTP}::test_an_app_that_stays_away_is_a_503_that_says_when_to_come_again",),
    "app.liveness.path": (f"{LIFE}::test_a_hung_app_is_replaced_and_a_busy_one_is_not",),
    "app.liveness.interval": (f"{LIFE}::test_a_hung_app_is_replaced_and_a_busy_one_is_not",),
    "app.liveness.timeout": (f"{LIFE}::test_a_hung_app_is_replaced_and_a_busy_one_is_not",),
    "app.liveness.failures": (f"{LIFE}::test_a_hung_app_is_replaced_and_a_busy_one_is_not",),
    "app.memory.limit": ("wire/app/test_app_replace.py::test_an_app_that_leaks_is_replaced_in_time_and_its_route_is_named",),
    "app.memory.warn": (f"{BEHAVIOUR}::test_warn_is_the_share_of_memory_that_is_told",),
    "app.memory.recycle": ("wire/app/test_app_replace.py::test_an_app_that_leaks_is_replaced_in_time_and_its_route_is_named",),
    "app.memory.every": ("unit/app/test_app_memory.py::test_it_is_replaced_at_most_once_in_every_and_said_so_once",),
    "app.attribution": ("unit/app/test_app_attribution.py::test_it_is_on_where_somebody_needs_to_know_whose_a_call_is",),
    "listen.public": (f"{LIFE}::test_a_worker_without_a_port_runs_and_its_clean_end_is_the_end",),
    "listen.admin": ("wire/gateway/test_reload_what_waits.py::test_the_listeners_addresses_are_kept_and_named",),
    "listen.egress": ("wire/egress/test_egress_life.py::test_a_taken_egress_address_is_named_by_its_key",),
    "listen.claim": (f"{LIFE}::test_a_claimed_path_that_the_app_answers_too_is_told_of",),
    "listen.trusted_proxies": (f"{DOOR}::test_a_forwarded_address_moves_a_limit_only_where_its_sender_is_trusted",),
    "listen.max_header": (f"{BEHAVIOUR}::test_max_header_bounds_a_requests_head",),
    "listen.max_body": (f"{HTTP}::test_max_body_by_length_and_by_counting",),
    "listen.keepalive": ("wire/ingress/test_relay_hostile.py::test_an_idle_connection_is_closed_after_keepalive",),
    "listen.connections.total": ("wire/ingress/test_connection_limits.py::test_when_all_places_are_taken_the_longest_idle_make_room",),
    "listen.connections.per_address": ("wire/ingress/test_connection_limits.py::test_an_address_has_so_many_connections_and_no_more_idle_or_not",),
    "listen.first_byte": ("wire/ingress/test_request_bodies.py::test_a_connection_that_never_says_a_thing_ends_after_first_byte_and_an_idle_one_does_not",),
    "listen.body.buffer": ("wire/ingress/test_request_bodies.py::test_a_body_past_the_buffer_takes_a_place_and_of_these_one_address_has_a_quarter",),
    "listen.body.min_rate": ("wire/ingress/test_request_bodies.py::test_a_body_below_the_least_rate_is_408_and_a_quicker_one_is_not",),
    "listen.call_fields": ("wire/gateway/test_messages_are_true.py::test_what_a_call_cost_stays_with_the_app_unless_the_policy_says_otherwise",),
    "listen.drain": ("wire/gateway/test_drain_ends.py::test_a_stream_longer_than_the_drain_is_cut_and_the_app_stops_in_order",),
    "admin.token": ("wire/gateway/test_reload_whole_or_not_at_all.py::test_whichever_part_cannot_be_made_nothing_is_changed_and_it_is_told",),
    "identity.user": (f"{DOOR}::test_a_forwarded_address_moves_a_limit_only_where_its_sender_is_trusted",),
    "identity.tiers[].name": (f"{CAPS}::test_caps_go_by_tier",),
    "identity.tiers[].users": ("wire/egress/test_money_gateway.py::test_a_user_whose_cap_is_spent_gets_402_before_the_app_works_and_after_a_restart_too",),
    "routes[].name": ("unit/ingress/test_ingress_identity.py::test_the_first_route_that_matches_has_the_request_however_it_is_spelled",),
    "routes[].match.path": ("unit/ingress/test_ingress_identity.py::test_the_first_route_that_matches_has_the_request_however_it_is_spelled",),
    "routes[].match.methods": ("unit/ingress/test_ingress_identity.py::test_the_first_route_that_matches_has_the_request_however_it_is_spelled",),
    "routes[].timeout": (f"{HTTP}::test_a_total_ends_a_stream_that_flows",),
    "routes[].total": (f"{HTTP}::test_a_total_ends_a_stream_that_flows",),
    "routes[].rate_limit": (f"{DOOR}::test_a_forwarded_address_moves_a_limit_only_where_its_sender_is_trusted",),
    "routes[].concurrency": (f"{DOOR}::test_a_routes_concurrency_queues_its_own_and_holds_up_no_other",),
    "routes[].queue.size": (f"{DOOR}::test_a_routes_concurrency_queues_its_own_and_holds_up_no_other",),
    "routes[].queue.wait": (f"{DOOR}::test_a_routes_concurrency_queues_its_own_and_holds_up_no_other",),
    "routes[].max_body": (f"{HTTP}::test_max_body_by_length_and_by_counting",),
    "routes[].streams": ("wire/ingress/test_stream_limits.py::test_an_answer_that_does_not_stream_takes_no_place_and_needs_none",),
    "routes[].requires_budget": ("wire/egress/test_caps_remember.py::test_a_request_of_a_user_who_is_not_remembered_gets_402_before_the_app_works",),
    "routes[].when_abandoned": ("wire/egress/test_egress_life.py::test_a_client_who_leaves_takes_the_call_with_it",),
    "routes[].enforce": ("wire/egress/test_money_gateway.py::test_shadow_mode_refuses_nobody",),
    "routes[].cache": ("wire/ingress/test_http_cache.py::test_a_fresh_answer_is_a_hit_and_says_its_age",),
    "routes[].compress": ("wire/ingress/test_compression.py::test_text_goes_out_in_the_coding_that_the_client_takes",),
    "routes[].headers.request": ("wire/ingress/test_route_headers.py::test_fields_of_a_request_are_set_and_taken_out_whatever_their_case_and_number",),
    "routes[].headers.response": ("wire/ingress/test_route_headers.py::test_fields_of_an_answer_are_set_and_taken_out",),
    "routes[].retries.attempts": ("wire/ingress/test_route_retries.py::test_the_last_attempt_ends_it_and_nothing_is_sent_twice",),
    "routes[].retries.on": ("wire/ingress/test_route_retries.py::test_on_without_connect_is_one_attempt",),
    "overload.mode": (f"{DOOR}::test_fixed_overload_admits_so_many_queues_so_many_and_refuses_the_rest",),
    "overload.fixed.limit": (f"{DOOR}::test_fixed_overload_admits_so_many_queues_so_many_and_refuses_the_rest",),
    "overload.fixed.queue": (f"{DOOR}::test_fixed_overload_admits_so_many_queues_so_many_and_refuses_the_rest",),
    "overload.fixed.wait": (f"{DOOR}::test_fixed_overload_admits_so_many_queues_so_many_and_refuses_the_rest",),
    "overload.adaptive.min": ("unit/ingress/test_admission_gates.py::test_a_request_that_waits_for_its_outgoing_call_holds_no_place_under_an_adaptive_limit",),
    "overload.adaptive.max": ("unit/ingress/test_admission_gates.py::test_a_request_that_waits_for_its_outgoing_call_holds_no_place_under_an_adaptive_limit",),
    "overload.adaptive.tolerance": ("unit/ingress/test_admission_tolerance.py::test_a_higher_tolerance_admits_more_to_an_app_that_is_flooded",),
    "overload.priority": ("unit/ingress/test_admission_gates.py::test_the_more_important_goes_first_and_displaces_the_newest_of_the_least",),
    "upstreams.*.kind": ("wire/egress/test_egress_who_may_call.py::test_keys_of_one_upstream_open_no_other_of_kind_http",),
    "upstreams.*.base_url": (f"{HOSTS}::test_only_the_port_that_an_upstream_names_passes_where_others_are_denied",),
    "upstreams.*.env": ("wire/gateway/test_reload_what_waits.py::test_an_upstream_that_is_taken_out_or_moved_serves_the_app_that_was_led_there_until_it_is_replaced",),
    "upstreams.*.api_key": ("wire/egress/test_egress_who_may_call.py::test_an_upstream_with_a_key_of_ours_serves_nobody_who_does_not_show_the_made_one",),
    "upstreams.*.timeout.connect": (f"{CALLS}::test_the_deadline_covers_everything",),
    "upstreams.*.timeout.first_byte": (f"{TIME}::test_a_late_first_byte_is_tried_again_where_the_policy_says_so",),
    "upstreams.*.timeout.idle": (f"{CALLS}::test_a_stream_that_stalls_ends_with_an_error_event",),
    "upstreams.*.timeout.total": (f"{CALLS}::test_the_deadline_covers_everything",),
    "upstreams.*.retry.attempts": (f"{TIME}::test_a_late_first_byte_is_tried_again_where_the_policy_says_so",),
    "upstreams.*.retry.backoff.first": (f"{TIME}::test_a_429_without_retry_after_holds_back_its_own_call_alone",),
    "upstreams.*.retry.backoff.max": (f"{TIME}::test_a_429_without_retry_after_holds_back_its_own_call_alone",),
    "upstreams.*.retry.backoff.jitter": (f"{TIME}::test_a_429_without_retry_after_holds_back_its_own_call_alone",),
    "upstreams.*.retry.on": (f"{BEHAVIOUR}::test_on_says_which_answers_are_tried_again",),
    "upstreams.*.retry.retry_after.max": (f"{BEHAVIOUR}::test_retry_after_is_obeyed_up_to_its_max",),
    "upstreams.*.retry.budget": (f"{CALLS}::test_the_budget_holds_back_retries_of_all_callers",),
    "upstreams.*.breaker.window": (f"{BEHAVIOUR}::test_probes_is_how_many_calls_try_an_upstream_whose_breaker_was_open", "unit/egress/test_egress_building_blocks.py::test_old_failures_are_forgotten"),
    "upstreams.*.breaker.min_calls": ("unit/egress/test_egress_building_blocks.py::test_it_opens_at_the_ratio_and_not_before_the_least_calls",),
    "upstreams.*.breaker.failure_ratio": ("unit/egress/test_egress_building_blocks.py::test_it_opens_at_the_ratio_and_not_before_the_least_calls",),
    "upstreams.*.breaker.open": (f"{BEHAVIOUR}::test_probes_is_how_many_calls_try_an_upstream_whose_breaker_was_open",),
    "upstreams.*.breaker.probes": (f"{BEHAVIOUR}::test_probes_is_how_many_calls_try_an_upstream_whose_breaker_was_open",),
    "upstreams.*.breaker.slow_call": (f"{TIME}::test_slow_calls_open_the_breaker_where_the_policy_says_what_is_slow",),
    "upstreams.*.pace.requests": ("wire/egress/test_egress_cancel.py::test_a_rate_is_kept_in_every_window",),
    "upstreams.*.pace.tokens": ("wire/egress/test_estimates_learn.py::test_a_picture_counts_against_the_pace_as_in_its_reservation",),
    "upstreams.*.pace.concurrency": ("wire/egress/test_egress_cancel.py::test_one_users_burst_does_not_starve_another",),
    "upstreams.*.pace.wait": (f"{TIME}::test_waiting_for_a_place_counts_against_the_deadline",),
    "upstreams.*.cap.per_call": (f"{MONEY}::test_every_cap_bites",),
    "upstreams.*.cap.per_user": (f"{CAPS}::test_caps_go_by_tier",),
    "upstreams.*.cap.unattributed": (f"{MONEY}::test_every_cap_bites",),
    "upstreams.*.cap.total": (f"{MONEY}::test_every_cap_bites",),
    "upstreams.*.cap.reserve": (f"{BEHAVIOUR}::test_reserve_says_how_much_a_call_without_a_bound_may_come_to",),
    "upstreams.*.cap.warn": (f"{BEHAVIOUR}::test_warn_says_at_which_shares_of_a_cap_it_is_told",),
    "upstreams.*.cap.timezone": (f"{CAPS}::test_another_time_zone_asks_for_a_new_count",),
    "upstreams.*.cache.ttl": (f"{CALLS}::test_the_same_question_is_answered_from_memory",),
    "upstreams.*.cache.max": ("unit/egress/test_egress_building_blocks.py::test_the_cache_is_bounded_by_bytes_and_forgets",),
    "upstreams.*.cache.scope": (f"{TIME}::test_an_answer_is_the_users_alone_unless_the_policy_says_otherwise",),
    "upstreams.*.cache.when": (f"{MONEY}::test_the_cache_gives_for_nothing_and_a_shared_call_is_paid_once",),
    "upstreams.*.cache.stale_if_error": (f"{CALLS}::test_an_expired_answer_is_better_than_none",),
    "upstreams.*.coalesce": (f"{CALLS}::test_identical_calls_in_flight_share_one",),
    "upstreams.*.fallback": (f"{CALLS}::test_another_model_then_another_upstream_then_a_text",),
    "upstreams.*.prices": ("unit/egress/test_money_prices.py::test_the_policys_price_comes_first",),
    "upstreams.*.unknown_price": (f"{MONEY}::test_a_model_without_a_price",),
    "egress.other_hosts": (f"{HOSTS}::test_denied_hosts_are_told_so_and_named_ones_pass",),
    "egress.timeout.connect": (f"{BEHAVIOUR}::test_connect_bounds_how_long_another_host_may_take_to_accept",),
    "egress.timeout.idle": (f"{BEHAVIOUR}::test_idle_ends_a_tunnel_in_which_nothing_moves",),
    "egress.timeout.total": (f"{BEHAVIOUR}::test_total_ends_an_exchange_with_another_host",),
    "egress.breaker.window": (f"{BEHAVIOUR}::test_another_hosts_failures_are_forgotten_after_the_window",),
    "egress.breaker.min_calls": (f"{HOSTS}::test_nobody_there_is_502_and_a_host_that_keeps_failing_is_refused_at_once",),
    "egress.breaker.failure_ratio": (f"{BEHAVIOUR}::test_another_host_has_a_breaker_by_its_own_figures",),
    "egress.breaker.open": (f"{BEHAVIOUR}::test_another_host_has_a_breaker_by_its_own_figures",),
    "egress.breaker.probes": (f"{BEHAVIOUR}::test_another_host_has_a_breaker_by_its_own_figures",),
    "egress.no_proxy": ("wire/egress/test_egress_tls_and_proxies.py::test_what_no_proxy_names_is_reached_directly_and_plain_http_goes_in_absolute_form",),
    "postgres.url": ("wire/postgres/test_postgres_life.py::test_the_app_gets_a_url_of_the_door_s_and_no_secret_of_the_database_s",),
    "postgres.listen": ("wire/postgres/test_postgres_life.py::test_the_app_gets_a_url_of_the_door_s_and_no_secret_of_the_database_s",),
    "postgres.env": ("unit/postgres/test_postgres_dsn.py::test_every_variable_gets_its_part_and_no_variable_the_real_password",),
    "postgres.mode": ("wire/postgres/test_postgres_own_process.py::test_in_session_mode_too",),
    "postgres.tls": ("wire/postgres/test_postgres_hostile.py::test_with_tls_on_a_client_that_insists_is_served",),
    "postgres.reset": (f"{POSTGRES}::test_what_a_function_sets_in_secret_stays_with_its_client_under_reset_always",),
    "postgres.pool.min": ("unit/postgres/test_postgres_pool.py::test_old_and_idle_connections_end_but_for_those_that_are_to_stay",),
    "postgres.pool.max": (f"{POSTGRES}::test_who_waits_too_long_is_told_who_holds_what_and_may_stay",),
    "postgres.pool.total": ("wire/postgres/test_postgres_pool_total.py::test_two_gateways_never_have_more_connections_than_the_total",),
    "postgres.pool.wait": (f"{POSTGRES}::test_who_waits_too_long_is_told_who_holds_what_and_may_stay",),
    "postgres.pool.idle": ("unit/postgres/test_postgres_pool.py::test_old_and_idle_connections_end_but_for_those_that_are_to_stay",),
    "postgres.pool.lifetime": ("unit/postgres/test_postgres_pool.py::test_old_and_idle_connections_end_but_for_those_that_are_to_stay",),
    "postgres.pool.connect": ("wire/postgres/test_postgres_faults.py::test_a_server_that_stalls_during_its_login_keeps_nobody_for_ever",),
    "postgres.clients": ("wire/postgres/test_postgres_hostile.py::test_many_clients_more_than_there_may_be_are_refused_in_order",),
    "postgres.timeout.query": (f"{POSTGRES}::test_a_query_past_its_time_is_cancelled_and_says_so",),
    "postgres.timeout.idle_in_transaction": (f"{POSTGRES}::test_a_transaction_left_idle_past_its_time_ends_and_says_so",),
    "postgres.pin.max": (f"{POSTGRES}::test_pins_are_at_most_so_many_and_then_a_clear_error",),
    "postgres.check": ("unit/postgres/test_postgres_pool.py::test_an_idle_connection_is_asked_whether_it_lives",),
    "ledger.url": ("wire/egress/test_background_responses.py::test_instances_that_share_a_ledger_settle_it_once_between_them",),
    "ledger.keep": ("unit/ledger/test_ledger_retention.py::test_rows_older_than_keep_go_and_a_reload_says_otherwise",),
    "ledger.on_error": ("unit/ledger/test_ledger_writer.py::test_with_deny_calls_do_not_go_on_while_they_cannot_be_written_down",),
    "alerts.slack": ("wire/observe/test_alerts_gateway.py::test_without_a_channel_alerts_are_logged_alone_and_a_reload_that_names_one_opens_it",),
    "alerts.webhook": ("wire/observe/test_alerts_gateway.py::test_without_a_channel_alerts_are_logged_alone_and_a_reload_that_names_one_opens_it",),
    "alerts.every": (f"{BEHAVIOUR}::test_cooldown_is_the_pause_until_an_alert_that_lasts_is_told_again",),
    "alerts.cooldown.warning": (f"{BEHAVIOUR}::test_cooldown_is_the_pause_until_an_alert_that_lasts_is_told_again",),
    "alerts.cooldown.critical": (f"{BEHAVIOUR}::test_cooldown_is_the_pause_until_an_alert_that_lasts_is_told_again",),
    "alerts.rules.*.when": ("wire/observe/test_alerts_gateway.py::test_an_upstream_that_fails_is_named", f"{BEHAVIOUR}::test_a_store_that_is_unwell_is_told_of_by_its_shipped_rule"),
    "alerts.rules.*.severity": (f"{BEHAVIOUR}::test_cooldown_is_the_pause_until_an_alert_that_lasts_is_told_again",),
    "log.level": ("unit/observe/test_observe_log.py::test_lines_below_the_level_are_left_out_until_a_new_policy_wants_them",),
    "log.format": ("unit/observe/test_observe_log.py::test_text_is_for_people",),
    "log.access": ("unit/observe/test_observe_log.py::test_the_policy_says_which_requests_are_logged",),
    "log.app_output": ("wire/gateway/test_reload_what_waits.py::test_a_crash_brings_what_waits_too",),
    "log.redact": (f"{BEHAVIOUR}::test_redact_adds_to_what_is_never_logged",),
    "metrics.app": ("wire/app/test_app_metrics.py::test_ours_are_served_with_the_apps_or_without",),
    "metrics.max_series": ("unit/observe/test_observe_metrics.py::test_routes_past_the_bound_count_under_other",),
    "store.url": ("wire/store/test_store_away.py::test_a_network_that_swallows_is_a_store_that_is_away_and_one_that_is_mended_brings_it_back",),
    "store.prefix": ("wire/store/test_store_operations.py::test_everything_that_is_kept_expires",),
    "store.money": ("wire/store/test_shared_caps.py::test_a_far_database_for_caps_is_waited_for_at_a_slices_end_alone",),
    "store.slice": ("wire/store/test_shared_caps.py::test_a_slice_of_an_instance_that_ends_is_given_back_at_once",),
    "store.timeout": ("wire/store/test_store_away.py::test_a_frozen_store_costs_one_timeout_for_everybody_together",),
    "store.on_error": ("wire/store/test_shared_limits.py::test_without_the_store_an_instance_goes_on_with_its_part_or_with_the_whole", "wire/store/test_shared_limits.py::test_deny_refuses_what_needs_the_store_and_nothing_else"),
    "store.region": ("wire/store/test_shared_state.py::test_the_region_stands_on_metrics_lines_and_ledger_rows",),
    "sentry.dsn": ("wire/observe/test_sentry.py::test_a_fault_of_ours_is_told_by_kind_and_place_once_a_minute_never_by_its_words",),
    "sentry.environment": (f"{BEHAVIOUR}::test_environment_is_what_sentry_calls_it",),
    "faults": ("wire/egress/test_egress_api.py::test_faults_on_purpose_are_loud_and_do_what_they_say",),
}  # fmt: skip


def leaves() -> list[str]:
    known = list(keys_known(Policy, ""))
    return [key for key in known if not any(other.startswith((f"{key}.", f"{key}[")) for other in known)]


@cache
def texts(file: str) -> dict[str, str]:
    """Each test of a file with its marks, and under "" all that is no test."""
    text = (TESTS / file).read_text(encoding="utf-8")
    lines, found, taken = text.splitlines(), {}, set[int]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)])
            span = range(first - 1, node.end_lineno or first)
            found[node.name] = "\n".join(lines[at] for at in span)
            taken.update(span)
    found[""] = "\n".join(line for at, line in enumerate(lines) if at not in taken)
    return found


@pytest.mark.parametrize("key", leaves())
def test_a_key_has_a_test_that_shows_what_it_does(key):
    if key in WAITING:
        return
    word = re.split(r"[.\[\]*]+", key)[-1]
    assert key in EFFECTS, f"{key}: no test shows its effect; write one, and name it here"
    for node in EFFECTS[key]:
        file, _, name = node.partition("::")
        assert name in texts(file), f"{node} is not there"
        said = f"{texts(file)[name]}\n{texts(file)['']}"
        assert re.search(rf"\b{word}\b", said), f"{node} has no {word} in it"


def test_the_table_has_no_key_that_is_none():
    assert sorted({*EFFECTS, *WAITING} - set(leaves())) == []


# What the comments alone show, by the words that a policy in some test has for it.
@pytest.mark.parametrize(
    ("section", "word"),
    [(section.__name__, word) for section in (*IN_COMMENTS, JwtSource) for word in key_hints(section)],
)
def test_what_comments_show_is_used_by_a_test_too(section, word):
    written = re.compile(rf"\b{word}\b")
    files = [
        one for one in (*TESTS.glob("unit/**/test_*.py"), *TESTS.glob("wire/**/test_*.py")) if "policy" not in one.name
    ]
    assert any(written.search(one.read_text(encoding="utf-8")) for one in files), f"{section}.{word}"
