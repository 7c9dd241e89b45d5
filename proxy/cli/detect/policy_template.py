"""A policy for an app as it was found. Nothing in it refuses what the app alone would serve, but for the day's total
of what calls may cost; what could refuse is in shadow, or a comment that says how it is switched on."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from urllib.parse import quote

from proxy.cli.detect.app import DetectedApp
from proxy.cli.detect.database import DetectedDatabase
from proxy.cli.detect.routes import AppRoute
from proxy.cli.detect.users import find_user_paths
from proxy.observe.log_format import printable
from proxy.policy.schema import SHIPPED_RULES

MAX_ROUTES = 12  # that get an entry of their own
_COMMENT_COLUMN = 44  # the column of comments
# Alert rules beside the shipped ones, which fire seldom and matter to everybody.
_EXTRA_RULES = {
    "postgres_down": ("postgres is degraded for 10s", "critical"),
    "disk_full": ("ledger is degraded for 10s", "warning"),
    "calls_failing": ("call errors > 20% over 5m", "warning"),
    "flooded": ("refusals > 10% over 5m", "warning"),
    "policy_refused": ("policy is refused", "warning"),
}
# Where the install command of `init` puts it, from the policy's folder: editors complete and check by it.
EDITOR_SCHEMA = ".outrigger/share/outrigger/outrigger.schema.json"


def render_policy(app: DetectedApp, name: str) -> str:
    """The text of a policy for the app; `name` is its folder's."""
    lines = [
        f"# yaml-language-server: $schema={EDITOR_SCHEMA}",
        f"# Outrigger's policy for {printable(name)}, made by `init` from what its files say. Read it once.",
        "# It watches and repairs; what could refuse a request is in shadow (`enforce: false` counts what would be",
        "# refused, and refuses nothing) or a comment. After a day `outrigger suggest` says which figures would have",
        "# refused nobody. `check` validates this file, `explain` says what a request would meet; saving it puts it in",
        "# force. What is not here has its default (`check --print` shows it), which refuses nothing.",
        "version: 1",
    ]
    # All that follows in the other case speaks of requests, which a worker does not get.
    if app.is_worker:
        lines += ["", "listen:", _with_comment("  public: off", "a worker: nobody calls it")]
    else:
        lines += [
            "",
            *_app_section(app),
            "",
            *_listen_section(),
            "",
            *_identity_section(app),
            "",
            *_routes_section(app),
            "",
            *_overload_section(),
        ]
    if app.upstreams:
        lines += ["", *_upstreams_section(app)]
    if app.database is not None:
        lines += ["", *_postgres_section(app.database)]
    return "\n".join([*lines, "", *_alerts_section()]) + "\n"


def _with_comment(line: str, why: str = "") -> str:
    """A line and a comment that says why it is there; a comment may name files, and their names are not ours."""
    why = printable(why)
    return f"{line.ljust(_COMMENT_COLUMN - 2)}  # {why}" if why else line


def _app_section(app: DetectedApp) -> Iterator[str]:
    yield "app:"
    if app.fixed_port is not None:
        yield _with_comment(f"  port: {app.fixed_port}", f"{app.fixed_port_file} says so, whatever PORT is")
    where = f" ({app.health_source})" if app.health_source else ""
    if app.health_path and not app.health_cost:
        yield _with_comment(
            f"  ready: {{path: {_yaml_path(app.health_path)}}}", f"ready once this answers below 500{where}"
        )
        yield "  # Alive while its port accepts. Where that path is quick and asks nobody else, this finds it hung:"
        yield f"  # liveness: {{path: {_yaml_path(app.health_path)}}}"
    elif app.health_path:
        yield f"  # {printable(app.health_path)}{printable(where)} {app.health_cost}: no probe asks it,"
        yield "  # the app is ready, and alive, while its port accepts. Where it has a path that asks nobody else:"
        yield "  # ready: {path: /health}"
    else:
        yield "  # No health path was found: the app is ready once its port accepts. Where it has one:"
        yield "  # ready: {path: /health}"
    if app.upstreams and app.language == "python":
        yield _with_comment(
            "  attribution: on", "its calls out say which request they are for, threads and tasks included"
        )
    elif app.upstreams:
        yield "  # Its calls out have an owner where it passes X-Outrigger-Request of a request on to them."
    yield _with_comment("  hold: 15s", "requests that find the app restarting wait this long")


def _listen_section() -> Iterator[str]:
    yield "listen:"
    yield "  # connections: {per_address: 256}         # of one address; behind a proxy its requests; then 503"
    yield "  # body: {min_rate: 500B/s}                # an upload that is slower over 10 s gets 408"
    yield _with_comment("  drain: 20s", "with app.stop_timeout (8s) below the 30 s that most platforms wait")


def _identity_section(app: DetectedApp) -> Iterator[str]:
    actors, paths = app.user_sources, find_user_paths(app.routes)
    yield "identity:"
    yield "  user:                                     # the first that names somebody; blocks, limits, caps go by it"
    # The first source that names somebody counts, so the hardest to make up stands first.
    if (token := actors.token) is not None:
        # Without the variable a key that nobody knows: no token names anybody then.
        key = f'"${{{token.variable}:-{secrets.token_urlsafe(32)}}}"'
        yield f"    # {printable(token.location)} verifies tokens; nobody can make one up. Without the key none counts."
        yield (
            f"    - jwt: {{header: Authorization, claim: {token.claim}, key: {key}, algorithms: [{token.algorithm}]}}"
            "  # who signed in"
        )
    elif actors.has_tokens:
        yield "    # Users who carry tokens are best named by them: nobody can make one up. JWT_KEY is your app's."
        yield '    # - jwt: {header: Authorization, claim: sub, key: "${JWT_KEY}", algorithms: [HS256]}'
    if actors.cookie is not None:
        yield _with_comment(
            f"    - cookie: {_yaml_word(actors.cookie[0])}", f"the session in {actors.cookie[1]}; hashed before any use"
        )
    elif actors.rotating_session:
        yield "    # Its session cookie is another one at each answer, so it names nobody here."
    if actors.header:
        yield _with_comment(f"    - header: {actors.header}", "the code reads it; a client can write any name here")
    if paths and actors.has_sessions:
        yield "    # A path says whose page it is, not who looks at it: a block would meet everybody who opens it."
        for path, where in paths:
            yield f"    # - path: {printable(path)}  # as in {printable(where)}"
    elif paths:
        yield "    # Nothing better was found than paths. They say whose page is looked at, not who looks: who opens it"
        yield "    # has that user's block, limits and caps, and a client can write any name. Where users sign in, name"
        yield "    # them by that: `cookie: NAME`, `jwt` or a header that something in front sets."
        for path, where in paths:
            yield _with_comment(f"    - path: {_yaml_path(path)}", f"as in {where}")
    yield _with_comment("    - ip", "everybody else, by address")


def _routes_section(app: DetectedApp) -> Iterator[str]:
    yield "routes:                                     # the first that fits"
    names: set[str] = set()
    # Routes that cost money first, since only MAX_ROUTES get an entry.
    chosen = [one for one in app.routes if one.calls_model][:MAX_ROUTES]
    chosen += [one for one in app.routes if one.streams and not one.calls_model][: MAX_ROUTES - len(chosen)]
    # Files first, since the first route that fits counts: a page's files would use up the default's limit.
    for path, where in app.static_paths:
        name = _unique_name("-".join(word for word in re.split(r"[^A-Za-z0-9]+", path) if word)[:50] or "files", names)
        yield f"  - name: {name}"
        yield _with_comment(
            f"    match: {{path: {_yaml_path(path)}, methods: [GET, HEAD]}}", f"files count against no limit ({where})"
        )
        yield ""
    if app.health_path and not app.health_cost:
        yield "  - name: health"
        yield _with_comment(
            f"    match: {{path: {_yaml_path(app.health_path)}, methods: [GET, HEAD]}}", "probes count against no limit"
        )
        yield ""
    for one in chosen:
        yield f"  - name: {_route_name(one, names)}"
        yield _with_comment(
            f"    match: {{path: {_yaml_path(one.pattern)}{_methods_entry(one)}}}",
            f"{one.location} {_describe_route(one)}",
        )
        if one.calls_model:
            yield _with_comment(
                "    enforce: false", "shadow: what the lines below would refuse is counted, and served"
            )
            yield _with_comment("    rate_limit: [60/h, 10/min]", "a user; in force: 429 with Retry-After")
            yield _with_comment(
                "    requires_budget: true", "in force: 402 before the app works, once a user's cap is spent"
            )
        if one.streams:
            yield "    # A stream holds its place to its end, so none are counted here; by user, in force 429:"
            yield "    # streams: 4"
        elif one.calls_model:
            yield _with_comment("    concurrency: 8", "at once, all users together; in force: more wait in the queue")
            yield _with_comment("    queue: {size: 16, wait: 10s}", "in force: so many wait, so long; then 503")
            yield "    # timeout: 120s                           # no shadow for this: 504; take what `suggest` says"
        yield ""
    yield "  - name: default"
    yield _with_comment("    enforce: false", "shadow, as above; take it out to refuse, once `suggest` says of whom")
    yield _with_comment("    rate_limit: 600/min", "a user; in force: 429 with Retry-After")
    yield _with_comment("    max_body: 10MiB", "in force: a bigger upload gets 413")
    yield _with_comment("    retries: {attempts: 2, on: [connect]}", "only where no byte was sent yet")
    yield "    # timeout: 60s                            # not where it has long polls, streams or slow uploads: 504"


def _overload_section() -> Iterator[str]:
    yield "# overload:                               # more requests than the app can do wait in turn, then get 503"
    yield "#   mode: adaptive                        # finds out how many that is; or fixed, with a figure of your own"


def _upstreams_section(app: DetectedApp) -> Iterator[str]:
    yield "upstreams:"
    for one in app.upstreams:
        yield _with_comment(f"  {one.name}:", one.reason)
        if one.kind != one.name:
            yield _with_comment(f"    kind: {one.kind}", "the dialect that its calls are metered by")
        if one.base_url:
            yield _with_comment(f"    base_url: {_yaml_string(one.base_url)}", one.base_url_reason)
        if one.env is not None:
            yield _with_comment(f"    env: [{', '.join(one.env)}]", "what the code reads; each leads here in the app")
        yield "    cap:                                    # dollars; reserved before a call, settled after it"
        yield _with_comment(
            "      total: $20/d", "the one line that refuses: the most that a day may cost you; then cost_cap_exceeded"
        )
        yield "      # per_user: [$1/d, $10/month]         # `outrigger report --by user` says what users cost"
        yield "    # pace: {concurrency: 20, wait: 10s}    # calls at once; more wait in turn, user by user, then 429"
        yield "    # timeout: {total: 120s, idle: 60s}     # all attempts and the stream; the longest silence in it"
        yield "    # fallback:                             # in place of an error, once everything else has failed"
        yield '    #   - {text: "The assistant is resting. Please try again in a minute."}'
    # It is there by default, so that nothing calls it has to be written.
    if "openai" not in {one.name for one in app.upstreams}:
        yield _with_comment("  openai: off", "nothing here calls it")


def _postgres_section(database: DetectedDatabase) -> Iterator[str]:
    yield "postgres:"
    if database.url:
        yield _with_comment(f"  url: ${{{database.url}:-}}", "the app's own then leads through a small shared pool")
        if database.url != "DATABASE_URL":
            yield _with_comment(f"  env: [{database.url}]", "what the code reads")
    else:
        pairs = ", ".join(f"{variable}: {part}" for part, variable in database.parts.items())
        yield f"  # {printable(database.location)} puts its address together from parts. A password with / # ? or %"
        yield "  # in it would have to be escaped here (%2F for /): then give the address a variable of its own."
        if off := "# " if database.missing_parts else "":
            missing = ", ".join(database.missing_parts)
            yield f"  # Off: no variable has its {missing}, so the code could not be led here."
        yield f"  {off}url: {_yaml_string(_database_url(database))}  # a small shared pool before the database"
        yield f"  {off}env: {{{pairs}}}  # what the code reads: in the app they lead to the pool"
    yield _with_comment(
        "  pool: {max: 20, wait: 30s}", "as many as are needed; more wait in turn, as long as in SQLAlchemy's pool"
    )
    yield _with_comment(
        "  pin: {max: 16}", "of them for clients that keep a session: LISTEN, advisory locks, temporary tables"
    )
    yield "  # timeout: {idle_in_transaction: 60s}     # ends a transaction that was forgotten"


def _database_url(database: DetectedDatabase) -> str:
    """An address whose parts are variables, each with the default that the code has."""

    def of(part: str, otherwise: str = "") -> str:
        if part not in database.parts:
            return otherwise
        # A default may have characters that would end a part of the address.
        default = quote(database.defaults.get(part, otherwise), safe="")
        return f"${{{database.parts[part]}:-{default}}}"

    password = f":{of('password')}" if "password" in database.parts else ""
    server = f"{of('host', 'localhost')}:{of('port', '5432')}"
    return f"postgresql://{of('user', 'postgres')}{password}@{server}/{of('database')}"


def _alerts_section() -> Iterator[str]:
    yield "alerts:                                     # to the log, and to Slack where SLACK_WEBHOOK_URL is set"
    yield _with_comment("  slack: ${SLACK_WEBHOOK_URL:-}", "they tell, and change nothing")
    yield "  rules:                                    # `NAME: off` takes one out"
    # The shipped rules are written out as well, so that one sees what can be changed.
    rules = {name: (str(rule.when), str(rule.severity)) for name, rule in SHIPPED_RULES.items()} | _EXTRA_RULES
    for name, (when, severity) in rules.items():
        yield f'    {name}: {{when: "{when}", severity: {severity}}}'


def _route_name(one: AppRoute, names: set[str]) -> str:
    words = [word for word in re.split(r"[^A-Za-z0-9]+", one.pattern) if word]
    return _unique_name(
        (one.name if re.fullmatch(r"[A-Za-z][\w-]{0,50}", one.name) else "") or "-".join(words)[:50] or "root", names
    )


def _unique_name(base: str, names: set[str]) -> str:
    name, count = base, 2
    # Two names are taken by routes that this file writes itself.
    while name in names or name in ("default", "health"):
        name, count = f"{base}-{count}", count + 1
    names.add(name)
    return name


def _methods_entry(one: AppRoute) -> str:
    return f", methods: [{', '.join(one.methods)}]" if one.methods else ""


def _describe_route(one: AppRoute) -> str:
    if one.calls_model and one.streams:
        return "streams what a model writes"
    return "calls a model" if one.calls_model else "streams"


def _yaml_path(path: str) -> str:
    """A path as YAML, quoted if something in it would mean something else."""
    return path if re.fullmatch(r"/(?:[\w./*-]|\{user\})*", path) else _yaml_string(path)


def _yaml_word(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z][\w.-]*", text) else _yaml_string(text)


def _yaml_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
