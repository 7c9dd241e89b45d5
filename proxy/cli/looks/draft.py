"""A policy for an app as it was found: every line that switches something on says why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from proxy.cli.looks.app import USERS, App
from proxy.cli.looks.routes import Seen
from proxy.observe.lines import printable

MOST_ROUTES = 12  # that get an entry of their own
_COMMENT = 44  # the column of comments


def draft(app: App, name: str) -> str:
    lines = [
        f"# Outrigger's policy for {printable(name)}, made by `init` from what its files say. Read it once:",
        "# what is on here can refuse requests. `check` validates it, `explain` says what a request would meet; saving",
        "# it puts it in force. What is not here has the defaults of config/reference.yaml, which refuse nothing.",
        "version: 1",
    ]
    if app.worker:
        lines += ["", "listen:", _say("  public: off", "a worker: nobody calls it")]
    else:
        lines += ["", *_app(app), "", *_listen(), "", *_identity(app), "", *_routes(app), "", *_overload()]
    if app.vendors:
        lines += ["", *_upstreams(app)]
    if app.database:
        lines += ["", *_postgres()]
    return "\n".join(lines) + "\n"


def _say(line: str, why: str = "") -> str:
    """A line and why it is there; names of files may have anything in them."""
    why = printable(why)
    return f"{line.ljust(_COMMENT - 2)}  # {why}" if why else line


def _app(app: App) -> Iterator[str]:
    yield "app:"
    if app.port is not None:
        yield _say(f"  port: {app.port}", f"{app.port_where} says so, whatever PORT is")
    if app.health:
        where = f" ({app.health_where})" if app.health_where else ""
        yield _say(f"  ready: {{path: {_text(app.health)}}}", f"ready once this answers below 500{where}")
        yield _say(
            f"  liveness: {{path: {_text(app.health)}}}", "three misses while nothing answers: the app is replaced"
        )
    else:
        yield "  # No health path was found: the app is ready once its port accepts. Where it has one:"
        yield "  # ready: {path: /health}"
        yield "  # liveness: {path: /health}"
    yield _say("  hold: 15s", "requests that find the app restarting wait this long")


def _listen() -> Iterator[str]:
    yield "listen:"
    yield _say("  max_body: 10MiB", "a bigger upload gets 413; routes may say otherwise (max_body)")
    yield _say("  connections: {per_address: 256}", "of one address; behind a proxy its requests under way")
    yield _say("  body: {min_rate: 500B/s}", "an upload that is slower over 10 s gets 408")
    yield _say("  drain: 20s", "with app.stop_timeout (8s) below the 30 s that most platforms wait")


def _identity(app: App) -> Iterator[str]:
    yield "identity:"
    yield "  user:                                     # the first that names somebody"
    paths = user_paths(app.routes)
    for path, where in paths:
        yield _say(f"    - path: {path}", f"as in {where}; a client can write any name here")
    if app.header:
        yield _say(f"    - header: {app.header}", "the code reads it; a client can write any name here")
    if _has_tokens(app):
        yield "    # Users who carry tokens are better named by them: nobody can make one up. JWT_KEY is your app's."
        yield '    # - jwt: {header: Authorization, claim: sub, key: "${JWT_KEY}", algorithms: [HS256]}'
    yield _say("    - ip", "everybody else, by address")


def _routes(app: App) -> Iterator[str]:
    yield "routes:                                     # the first that fits"
    names: set[str] = set()
    chosen = [one for one in app.routes if one.model][:MOST_ROUTES]
    chosen += [one for one in app.routes if one.streams and not one.model][: MOST_ROUTES - len(chosen)]
    for one in chosen:
        yield f"  - name: {_name(one, names)}"
        yield _say(f"    match: {{path: {_text(one.pattern)}{_methods(one)}}}", f"{one.where} {_what(one)}")
        if one.streams:
            yield _say("    timeout: 60s", "to the first byte, and the longest silence after it")
            yield _say("    total: 10m", "the whole of a stream")
        else:
            yield _say("    timeout: 120s", "a model may think that long")
        if one.model:
            yield _say("    rate_limit: [60/h, 10/min]", "a user; then 429 with Retry-After")
            yield _say("    concurrency: 8", "at once, all users together")
            yield _say("    queue: {size: 16, wait: 10s}", "so many wait, so long; then 503")
            yield _say("    requires_budget: true", "a user whose cap is spent gets 402 before the app works")
        yield ""
    if app.health:
        yield "  - name: health"
        yield _say(f"    match: {{path: {_text(app.health)}, methods: [GET, HEAD]}}", "probes are never refused")
        yield "    timeout: 10s"
        yield ""
    yield "  - name: default"
    yield _say("    timeout: 60s", "to the first byte of the answer, and between bytes; then 504")
    yield _say("    rate_limit: 600/min", "a user")
    yield _say("    retries: {attempts: 2, on: [connect]}", "only where no byte was sent yet")


def _overload() -> Iterator[str]:
    yield "overload:"
    yield _say("  mode: fixed", "more requests than the app can do wait in turn, then get 503")
    yield _say("  fixed: {limit: 40, queue: 80, wait: 10s}", "forty threads are what most Python servers have")


def _upstreams(app: App) -> Iterator[str]:
    named = bool(user_paths(app.routes)) or bool(app.header)
    yield "upstreams:"
    for vendor in app.vendors:
        yield _say(f"  {vendor}:", "the app's calls come through here by an environment variable")
        yield _say("    timeout: {total: 120s, idle: 60s}", "all attempts and the stream; the longest silence in it")
        yield _say(
            "    breaker: {min_calls: 5, open: 30s}", "half of the last calls failed: refused at once, for so long"
        )
        yield _say("    pace: {concurrency: 20, wait: 10s}", "more wait in turn, user by user")
        yield "    cap:                                    # dollars; reserved before a call, settled after it"
        if named and not app.worker:
            yield _say("      per_user: [$1/d, $10/month]", "then cost_cap_exceeded")
        yield _say("      total: $20/d", "all calls together: what a day may cost you at most")
        yield "    # fallback:                             # in place of an error, once everything else has failed"
        yield '    #   - {text: "The assistant is resting. Please try again in a minute."}'
    if "openai" not in app.vendors:
        yield _say("  openai: off", "nothing here calls it")


def _postgres() -> Iterator[str]:
    yield "postgres:"
    yield _say("  url: ${DATABASE_URL:-}", "the app's own then leads through a small shared pool")
    yield _say("  pool: {max: 5, wait: 5s}", "what small databases can spare; more clients wait in turn")
    yield _say("  timeout: {idle_in_transaction: 60s}", "a transaction that was forgotten ends")


def user_paths(routes: Sequence[Seen]) -> list[tuple[str, str]]:
    """Path templates that name users, the two that fit most routes, and where each was seen."""
    counts: Counter[str] = Counter()
    where: dict[str, str] = {}
    for one in routes:
        for match in re.finditer(r"\{(\w+)[^}]*\}|<(?:\w+:)?(\w+)>|:(\w+)", one.path):
            if (match[1] or match[2] or match[3]).lower() in USERS:
                before = re.sub(r"\{[^}]*\}|<[^>]*>|:\w+", "*", one.path[: match.start()])
                rest = one.path[match.end() :].strip("/")
                template = f"{before}{{user}}" + ("/*" if rest else "")
                counts[template] += 1
                where.setdefault(template, one.where)
                break
    wide = [path for path in counts if path.endswith("/*")]
    kept = [path for path, _ in counts.most_common() if f"{path}/*" not in wide or path in wide]
    return [(path, where[path]) for path in kept[:2]]


def _has_tokens(app: App) -> bool:
    return bool(
        app.needs & {"pyjwt", "python-jose", "authlib", "fastapi-users", "djangorestframework-simplejwt"}
    ) or bool(app.needs & {"flask-jwt-extended", "jsonwebtoken", "jose", "passport-jwt"})


def _name(one: Seen, names: set[str]) -> str:
    words = [word for word in re.split(r"[^A-Za-z0-9]+", one.pattern) if word]
    base = (one.name if re.fullmatch(r"[A-Za-z][\w-]{0,50}", one.name) else "") or "-".join(words)[:50] or "root"
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
    return path if re.fullmatch(r"/[\w./*-]*", path) else '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
