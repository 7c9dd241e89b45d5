"""A policy for an app as it was found. Nothing in it refuses what the app alone would serve, but for the day's total
of what calls may cost; what could refuse is in shadow, or a comment that says how it is switched on."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from urllib.parse import quote

from proxy.cli.detect.app import App
from proxy.cli.detect.database import Database
from proxy.cli.detect.routes import Seen
from proxy.cli.detect.users import user_paths
from proxy.observe.log_format import printable
from proxy.policy.schema.alerting import SHIPPED_RULES

MOST_ROUTES = 12  # that get an entry of their own
_COMMENT = 44  # the column of comments
# Beside the shipped rules: what nobody needs to be told of twice a day, and everybody once.
_RULES = {
    "postgres_down": ("postgres is degraded for 10s", "critical"),
    "disk_full": ("ledger is degraded for 10s", "warning"),
    "calls_failing": ("call errors > 20% over 5m", "warning"),
    "flooded": ("refusals > 10% over 5m", "warning"),
    "policy_refused": ("policy is refused", "warning"),
}


def draft(app: App, name: str) -> str:
    lines = [
        f"# Outrigger's policy for {printable(name)}, made by `init` from what its files say. Read it once.",
        "# It watches and repairs; what could refuse a request is in shadow (`enforce: false` counts what would be",
        "# refused, and refuses nothing) or a comment. After a day `outrigger suggest` says which figures would have",
        "# refused nobody. `check` validates this file, `explain` says what a request would meet; saving it puts it in",
        "# force. What is not here has the defaults of config/reference.yaml, which refuse nothing.",
        "version: 1",
    ]
    if app.worker:
        lines += ["", "listen:", _say("  public: off", "a worker: nobody calls it")]
    else:
        lines += ["", *_app(app), "", *_listen(), "", *_identity(app), "", *_routes(app), "", *_overload()]
    if app.upstreams:
        lines += ["", *_upstreams(app)]
    if app.database is not None:
        lines += ["", *_postgres(app.database)]
    return "\n".join([*lines, "", *_alerts()]) + "\n"


def _say(line: str, why: str = "") -> str:
    """A line and why it is there; names of files may have anything in them."""
    why = printable(why)
    return f"{line.ljust(_COMMENT - 2)}  # {why}" if why else line


def _app(app: App) -> Iterator[str]:
    yield "app:"
    if app.port is not None:
        yield _say(f"  port: {app.port}", f"{app.port_where} says so, whatever PORT is")
    where = f" ({app.health_where})" if app.health_where else ""
    if app.health and not app.health_dear:
        yield _say(f"  ready: {{path: {_text(app.health)}}}", f"ready once this answers below 500{where}")
        yield "  # Alive while its port accepts. Where that path is quick and asks nobody else, this finds it hung:"
        yield f"  # liveness: {{path: {_text(app.health)}}}"
    elif app.health:
        yield f"  # {printable(app.health)}{printable(where)} {app.health_dear}: no probe asks it,"
        yield "  # the app is ready, and alive, while its port accepts. Where it has a path that asks nobody else:"
        yield "  # ready: {path: /health}"
    else:
        yield "  # No health path was found: the app is ready once its port accepts. Where it has one:"
        yield "  # ready: {path: /health}"
    if app.upstreams and app.language == "python":
        yield _say("  attribution: on", "its calls out say which request they are for, threads and tasks included")
    elif app.upstreams:
        yield "  # Its calls out have an owner where it passes X-Outrigger-Request of a request on to them."
    yield _say("  hold: 15s", "requests that find the app restarting wait this long")


def _listen() -> Iterator[str]:
    yield "listen:"
    yield "  # connections: {per_address: 256}         # of one address; behind a proxy its requests; then 503"
    yield "  # body: {min_rate: 500B/s}                # an upload that is slower over 10 s gets 408"
    yield _say("  drain: 20s", "with app.stop_timeout (8s) below the 30 s that most platforms wait")


def _identity(app: App) -> Iterator[str]:
    actors, paths = app.actors, user_paths(app.routes)
    yield "identity:"
    yield "  user:                                     # the first that names somebody; blocks, limits, caps go by it"
    if (token := actors.token) is not None:
        # Without the variable a key that nobody knows: no token names anybody then.
        key = f'"${{{token.variable}:-{secrets.token_urlsafe(32)}}}"'
        yield f"    # {printable(token.where)} verifies tokens; nobody can make one up. Without the key none counts."
        yield (
            f"    - jwt: {{header: Authorization, claim: {token.claim}, key: {key}, algorithms: [{token.algorithm}]}}"
            "  # who signed in"
        )
    elif actors.has_tokens:
        yield "    # Users who carry tokens are best named by them: nobody can make one up. JWT_KEY is your app's."
        yield '    # - jwt: {header: Authorization, claim: sub, key: "${JWT_KEY}", algorithms: [HS256]}'
    if actors.cookie is not None:
        yield _say(
            f"    - cookie: {_word(actors.cookie[0])}", f"the session in {actors.cookie[1]}; hashed before any use"
        )
    elif actors.changing:
        yield "    # Its session cookie is another one at each answer, so it names nobody here."
    if actors.header:
        yield _say(f"    - header: {actors.header}", "the code reads it; a client can write any name here")
    if paths and actors.signed_in:
        yield "    # A path says whose page it is, not who looks at it: a block would meet everybody who opens it."
        for path, where in paths:
            yield f"    # - path: {printable(path)}  # as in {printable(where)}"
    elif paths:
        yield "    # Nothing better was found than paths. They say whose page is looked at, not who looks: who opens it"
        yield "    # has that user's block, limits and caps, and a client can write any name. Where users sign in, name"
        yield "    # them by that: `cookie: NAME`, `jwt` or a header that something in front sets."
        for path, where in paths:
            yield _say(f"    - path: {_text(path)}", f"as in {where}")
    yield _say("    - ip", "everybody else, by address")


def _routes(app: App) -> Iterator[str]:
    yield "routes:                                     # the first that fits"
    names: set[str] = set()
    chosen = [one for one in app.routes if one.model][:MOST_ROUTES]
    chosen += [one for one in app.routes if one.streams and not one.model][: MOST_ROUTES - len(chosen)]
    for path, where in app.statics:
        name = _unique("-".join(word for word in re.split(r"[^A-Za-z0-9]+", path) if word)[:50] or "files", names)
        yield f"  - name: {name}"
        yield _say(
            f"    match: {{path: {_text(path)}, methods: [GET, HEAD]}}", f"files count against no limit ({where})"
        )
        yield ""
    if app.health and not app.health_dear:
        yield "  - name: health"
        yield _say(f"    match: {{path: {_text(app.health)}, methods: [GET, HEAD]}}", "probes count against no limit")
        yield ""
    for one in chosen:
        yield f"  - name: {_name(one, names)}"
        yield _say(f"    match: {{path: {_text(one.pattern)}{_methods(one)}}}", f"{one.where} {_what(one)}")
        if one.model:
            yield _say("    enforce: false", "shadow: what the lines below would refuse is counted, and served")
            yield _say("    rate_limit: [60/h, 10/min]", "a user; in force: 429 with Retry-After")
            yield _say("    requires_budget: true", "in force: 402 before the app works, once a user's cap is spent")
        if one.streams:
            yield "    # A stream holds its place to its end, so none are counted here; by user, in force 429:"
            yield "    # streams: 4"
        elif one.model:
            yield _say("    concurrency: 8", "at once, all users together; in force: more wait in the queue")
            yield _say("    queue: {size: 16, wait: 10s}", "in force: so many wait, so long; then 503")
            yield "    # timeout: 120s                           # no shadow for this: 504; take what `suggest` says"
        yield ""
    yield "  - name: default"
    yield _say("    enforce: false", "shadow, as above; take it out to refuse, once `suggest` says of whom")
    yield _say("    rate_limit: 600/min", "a user; in force: 429 with Retry-After")
    yield _say("    max_body: 10MiB", "in force: a bigger upload gets 413")
    yield _say("    retries: {attempts: 2, on: [connect]}", "only where no byte was sent yet")
    yield "    # timeout: 60s                            # not where it has long polls, streams or slow uploads: 504"


def _overload() -> Iterator[str]:
    yield "# overload:                               # more requests than the app can do wait in turn, then get 503"
    yield "#   mode: adaptive                        # finds out how many that is; or fixed, with a figure of your own"


def _upstreams(app: App) -> Iterator[str]:
    yield "upstreams:"
    for one in app.upstreams:
        yield _say(f"  {one.name}:", one.why)
        if one.kind != one.name:
            yield _say(f"    kind: {one.kind}", "the dialect that its calls are metered by")
        if one.base_url:
            yield _say(f"    base_url: {_quoted(one.base_url)}", one.base_why)
        if one.env is not None:
            yield _say(f"    env: [{', '.join(one.env)}]", "what the code reads; each leads here in the app")
        yield "    cap:                                    # dollars; reserved before a call, settled after it"
        yield _say(
            "      total: $20/d", "the one line that refuses: the most that a day may cost you; then cost_cap_exceeded"
        )
        yield "      # per_user: [$1/d, $10/month]         # `outrigger report --by user` says what users cost"
        yield "    # pace: {concurrency: 20, wait: 10s}    # calls at once; more wait in turn, user by user, then 429"
        yield "    # timeout: {total: 120s, idle: 60s}     # all attempts and the stream; the longest silence in it"
        yield "    # fallback:                             # in place of an error, once everything else has failed"
        yield '    #   - {text: "The assistant is resting. Please try again in a minute."}'
    if "openai" not in {one.name for one in app.upstreams}:
        yield _say("  openai: off", "nothing here calls it")


def _postgres(database: Database) -> Iterator[str]:
    yield "postgres:"
    if database.url:
        yield _say(f"  url: ${{{database.url}:-}}", "the app's own then leads through a small shared pool")
        if database.url != "DATABASE_URL":
            yield _say(f"  env: [{database.url}]", "what the code reads")
    else:
        pairs = ", ".join(f"{variable}: {part}" for part, variable in database.parts.items())
        yield f"  # {printable(database.where)} puts its address together from parts. A password with / # ? or %"
        yield "  # in it would have to be escaped here (%2F for /): then give the address a variable of its own."
        if off := "# " if database.missing else "":
            yield f"  # Off: no variable has its {', '.join(database.missing)}, so the code could not be led here."
        yield f"  {off}url: {_quoted(_address(database))}  # a small shared pool before the database"
        yield f"  {off}env: {{{pairs}}}  # what the code reads: in the app they lead to the pool"
    yield _say(
        "  pool: {max: 20, wait: 30s}", "as many as are needed; more wait in turn, as long as in SQLAlchemy's pool"
    )
    yield _say("  pin: {max: 16}", "of them for clients that keep a session: LISTEN, advisory locks, temporary tables")
    yield "  # timeout: {idle_in_transaction: 60s}     # ends a transaction that was forgotten"


def _address(database: Database) -> str:
    """Each part by its variable, and by what the code takes without it."""

    def of(part: str, otherwise: str = "") -> str:
        if part not in database.parts:
            return otherwise
        default = quote(database.defaults.get(part, otherwise), safe="")
        return f"${{{database.parts[part]}:-{default}}}"

    password = f":{of('password')}" if "password" in database.parts else ""
    server = f"{of('host', 'localhost')}:{of('port', '5432')}"
    return f"postgresql://{of('user', 'postgres')}{password}@{server}/{of('database')}"


def _alerts() -> Iterator[str]:
    yield "alerts:                                     # to the log, and to Slack where SLACK_WEBHOOK_URL is set"
    yield _say("  slack: ${SLACK_WEBHOOK_URL:-}", "they tell, and change nothing")
    yield "  rules:                                    # `NAME: off` takes one out"
    rules = {name: (str(rule.when), str(rule.severity)) for name, rule in SHIPPED_RULES.items()} | _RULES
    for name, (when, severity) in rules.items():
        yield f'    {name}: {{when: "{when}", severity: {severity}}}'


def _name(one: Seen, names: set[str]) -> str:
    words = [word for word in re.split(r"[^A-Za-z0-9]+", one.pattern) if word]
    return _unique(
        (one.name if re.fullmatch(r"[A-Za-z][\w-]{0,50}", one.name) else "") or "-".join(words)[:50] or "root", names
    )


def _unique(base: str, names: set[str]) -> str:
    name, count = base, 2
    while name in names or name in ("default", "health"):
        name, count = f"{base}-{count}", count + 1
    names.add(name)
    return name


def _methods(one: Seen) -> str:
    return f", methods: [{', '.join(one.methods)}]" if one.methods else ""


def _what(one: Seen) -> str:
    if one.model and one.streams:
        return "streams what a model writes"
    return "calls a model" if one.model else "streams"


def _text(path: str) -> str:
    """A path as YAML: as it is where nothing in it means something else."""
    return path if re.fullmatch(r"/(?:[\w./*-]|\{user\})*", path) else _quoted(path)


def _word(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z][\w.-]*", text) else _quoted(text)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
