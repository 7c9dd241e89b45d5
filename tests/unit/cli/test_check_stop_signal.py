"""doctor knows servers that do not end in order at SIGTERM."""

from pathlib import Path

import pytest

from proxy.cli.checks.stop_signal import check_stop_signal
from proxy.policy.loading import PolicySource, load_policy


@pytest.mark.parametrize(
    ("line", "signal", "level"),
    [
        ("uwsgi --http-socket :8000 --module app --master", "SIGTERM", "warning"),
        ("uwsgi --http-socket :8000 -M --module app", "SIGHUP", "warning"),
        ("uwsgi --http-socket :8000 --module app --master", "SIGQUIT", "ok"),
        ("uwsgi --http-socket :8000 --module app --master", "SIGINT", "ok"),
        ("uwsgi --http-socket :8000 --module app", "SIGTERM", "ok"),  # without a master nothing reloads
        ("uwsgi --module app --master --die-on-term", "SIGTERM", "ok"),
        ("uwsgi --module app --master --die-on-term", "SIGINT", "ok"),
        ("uwsgi --module app --master --die-on-term", "SIGQUIT", "warning"),  # the two change places
        ("uwsgi --ini sound.ini", "SIGQUIT", "warning"),
        ("UWSGI=1 /usr/bin/uwsgi --ini sound.ini", "SIGTERM", "ok"),
        ("migrate && uwsgi --ini=sound.ini", "SIGTERM", "ok"),
        ("uwsgi off.ini", "SIGTERM", "warning"),
        ("uwsgi gone.ini", "SIGTERM", "warning"),
        ("nginx -g 'daemon off;'", "SIGTERM", "warning"),
        ("nginx -g 'daemon off;'", "SIGQUIT", "ok"),
        ("httpd -DFOREGROUND", "SIGTERM", "warning"),
        ("httpd -DFOREGROUND", "SIGWINCH", "ok"),
        ("gunicorn app:app", "SIGTERM", None),
        ("gunicorn 'app", "SIGTERM", None),
    ],
)
def test_a_stop_signal_that_does_not_fit_the_server_is_told(tmp_path: Path, line: str, signal: str, level) -> None:
    (tmp_path / "sound.ini").write_text("[uwsgi]\nmodule = app\n  die-on-term = true\n")
    (tmp_path / "off.ini").write_text("[uwsgi]\n; die-on-term = true\n")
    policy = load_policy(PolicySource("test", None, f"app: {{stop_signal: {signal}}}"), {})
    found = check_stop_signal(policy, line, {}, tmp_path)
    assert [one.level for one in found] == ([level] if level else [])
    assert all(one.level == "ok" or "app.stop_signal" in (one.fix or "") for one in found)


def test_uwsgi_may_be_told_by_a_variable(tmp_path: Path) -> None:
    policy = load_policy(PolicySource("test", None, ""), {})
    (found,) = check_stop_signal(policy, "uwsgi -w app --master", {"UWSGI_DIE_ON_TERM": "true"}, tmp_path)
    assert found.level == "ok"
    (found,) = check_stop_signal(policy, "uwsgi -w app", {"UWSGI_MASTER": "true"}, tmp_path)
    assert found.level == "warning"
