"""How an app's code tells its users apart: tokens, session cookies, headers, and paths only if there is nothing better,
since a path says whose page is looked at, not who looks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from proxy.cli.detect.path_templates import is_valid
from proxy.cli.detect.project_files import Folder, location_of
from proxy.cli.detect.routes import AppRoute
from proxy.policy.value_types import TEMPLATE

# Names of path parameters that are a user whatever stands before them.
USER_PARAMETERS = (
    "user",
    "user_id",
    "userid",
    "username",
    "user_name",
    "uid",
    "account",
    "account_id",
    "accountid",
    "customer",
    "customer_id",
    "customerid",
    "member",
    "member_id",
    "memberid",
    "owner_id",
    "profile_id",
)
# Names of collections whose members are users: the parameter behind /users/ is one whatever its name.
USER_COLLECTIONS = re.compile(r"(?:users?|accounts?|members?|customers?|profiles?|people|u)$", re.IGNORECASE)
TOKEN_PACKAGES = {
    "pyjwt",
    "python-jose",
    "authlib",
    "fastapi-users",
    "djangorestframework-simplejwt",
    "flask-jwt-extended",
}
TOKEN_PACKAGES |= {"jsonwebtoken", "jose", "passport-jwt", "fastify-jwt", "@fastify/jwt", "express-jwt"}

# A header by its name in quotes, or as the parameter that FastAPI makes a header of.
_USER_HEADER = re.compile(r"['\"](X-(?:User|Account|Customer)(?:-Id|-Name)?)['\"]|\bx_user_id\b\s*:", re.IGNORECASE)
# {id} and {id:int} (FastAPI, aiohttp), <id> and <int:id> (Flask, Django), :id (Express).
_PATH_PARAMETER = re.compile(r"\{(\w+)[^}]*\}|<(?:\w+:)?(\w+)>|:(\w+)")
# cookies.get("x"), cookies["x"] and cookies.x, but not `cookies.x = …`, which writes it.
_COOKIE_READ = re.compile(r"\bcookies(?:\.get\(|\[|\.)\s*['\"]?([\w.-]+)\b(?!\s*=[^=])", re.IGNORECASE)
# Names of cookies that stay the same while somebody is signed in; `author` is none.
_SESSION_COOKIE = re.compile(r"sess(?:ion|_?id)|token|auth(?!or)|jwt|(?:^|[._-])sid(?:$|[._-])", re.IGNORECASE)
# The cookies of programs whose code is not here.
_PROGRAM_COOKIES = {"open-webui": "token", "datasette": "ds_actor"}
# The second argument of jwt.decode (PyJWT, jose) and jwt.verify (jsonwebtoken) is the key.
_TOKEN_DECODE = re.compile(r"\bjwt\.(?:decode|verify)\(\s*[^,()]+(?:\([^()]*\))?\s*,\s*([^,\n]+?)\s*(?:,|\))")
_ALGORITHM = re.compile(r"\b(HS(?:256|384|512))\b")
# The claim that the code reads of the decoded token.
_USER_CLAIM = re.compile(
    r"\b(?:payload|claims|decoded|data|token_data)(?:\.get\(|\[|\.)\s*['\"]?(sub|user_id|userId|uid|username)\b"
)
# A read of the environment in Python or Node; group 1 is the variable. No compiled pattern, since others include it.
_ENV_READ = r"(?:environ\.get\(|environ\[|getenv\(|process\.env\.|env\(|config\()\s*['\"]?([A-Z][A-Z0-9_]*)"


@dataclass(frozen=True, slots=True)
class TokenSource:
    """A JSON Web Token that the code verifies: the variable that has its key, the algorithm (HS256 and the like), the
    claim that names the user."""

    variable: str
    algorithm: str
    claim: str
    location: str


@dataclass(frozen=True, slots=True)
class UserSources:
    """What names users.

    Attributes:
        token: a JSON Web Token that the code verifies.
        cookie: the name of a session's cookie, and where it was seen.
        header: the name of a header.
        has_tokens: whether the app brings a package for tokens.
        rotating_session: whether sessions have another cookie at each answer, which therefore names nobody.
    """

    token: TokenSource | None = None
    cookie: tuple[str, str] | None = None
    header: str = ""
    has_tokens: bool = False
    rotating_session: bool = False

    @property
    def names_users(self) -> bool:
        """Whether anything says who acts."""
        return self.token is not None or self.cookie is not None or bool(self.header)

    @property
    def has_sessions(self) -> bool:
        """Whether users are known by a session, whether or not its cookie can be read here."""
        return self.names_users or self.rotating_session


def find_user_sources(folder: Folder, packages: Collection[str]) -> UserSources:
    sources = list(folder.source_files(".py", ".js", ".ts", ".mjs", ".cjs"))
    header = ""
    for _, text in sources:
        if found := _USER_HEADER.search(text):
            header = found[1] or "X-User-Id"
            break
    return UserSources(
        token=_find_token(sources),
        cookie=_find_session_cookie(sources, packages),
        header=header,
        has_tokens=bool(TOKEN_PACKAGES & set(packages)),
        rotating_session=any("starlette.middleware.sessions" in text for _, text in sources) or "next-auth" in packages,
    )


def find_user_paths(routes: Sequence[AppRoute]) -> list[tuple[str, str]]:
    """Path templates that name users, those first that fit most routes, and where each was seen."""
    counts: Counter[str] = Counter()
    where: dict[str, str] = {}
    for one in routes:
        for match in _PATH_PARAMETER.finditer(one.path):
            before = one.path[: match.start()]
            name = (match[1] or match[2] or match[3]).lower()
            if name in USER_PARAMETERS or (
                before.endswith("/") and USER_COLLECTIONS.search(before.rstrip("/").rpartition("/")[2])
            ):
                before = re.sub(r"\{[^}]*\}|<[^>]*>|:\w+", "*", before)
                template = f"{before}{{user}}" + ("/*" if one.path[match.end() :].strip("/") else "")
                if not is_valid(TEMPLATE, template):
                    continue
                counts[template] += 1
                where.setdefault(template, one.location)
                break
    return [(path, where[path]) for path, _ in counts.most_common() if f"{path}/*" not in counts]


def _find_token(sources: Sequence[tuple[str, str]]) -> TokenSource | None:
    whole = "\n".join(text for _, text in sources)
    for name, text in sources:
        hit = _TOKEN_DECODE.search(text)
        if hit is None:
            continue
        variable = _find_key_variable(hit[1], whole)
        algorithm = _ALGORITHM.search(text) or _ALGORITHM.search(whole)
        if variable and (algorithm or name.endswith((".js", ".ts", ".mjs", ".cjs"))):
            claim = _USER_CLAIM.search(text)
            line = text.count("\n", 0, hit.start()) + 1
            return TokenSource(
                variable, algorithm[1] if algorithm else "HS256", claim[1] if claim else "sub", f"{name}:{line}"
            )
    return None


def _find_key_variable(expression: str, whole: str) -> str:
    """The environment variable that a key comes from: named in the call, at the key's assignment, or by a setting."""
    if direct := re.search(_ENV_READ, expression):
        return direct[1]
    name = re.split(r"\W+", expression.rstrip(")").removesuffix(".get_secret_value(").strip())[-1]
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        return ""
    if assigned := re.search(rf"\b{name}\b\s*(?::[^=\n]+)?=\s*[^\n]*?{_ENV_READ}", whole):
        return assigned[1]
    if re.search(rf"\b{name}\s*=\s*['\"]", whole):
        return ""  # a constant: it is not in the environment
    return name.upper() if "." in expression else ""


def _find_session_cookie(sources: Sequence[tuple[str, str]], packages: Collection[str]) -> tuple[str, str] | None:
    """The cookie that stays the same while somebody is signed in."""
    for name, text in sources:
        if "django.contrib.sessions" in text:
            return _search_cookie_name(sources, r"SESSION_COOKIE_NAME\s*=\s*['\"]([\w.-]+)['\"]") or ("sessionid", name)
        if "CookieTransport(" in text:
            return _search_cookie_name([(name, text)], r"cookie_name\s*=\s*['\"]([\w.-]+)['\"]") or (
                "fastapiusersauth",
                name,
            )
        if "express-session" in text and "express-session" in packages:
            return _search_cookie_name([(name, text)], r"\bsession\(\{[^}]*?\bname\s*:\s*['\"]([\w.-]+)['\"]") or (
                "connect.sid",
                name,
            )
    # A cookie that the code itself reads goes before those that frameworks set by themselves.
    for name, text in sources:
        for hit in _COOKIE_READ.finditer(text):
            if _SESSION_COOKIE.search(hit[1]) and re.search("[cx]srf", hit[1], re.IGNORECASE) is None:
                return hit[1], location_of(name, text, hit)
    # Programs that are installed, and not part of the folder.
    for program, cookie in _PROGRAM_COOKIES.items():
        if program in packages:
            return cookie, f"{program}'s own code"
    for name, text in sources:
        if re.search(
            r"^from flask import [^\n]*\bsession\b|\bflask_login\b|^from flask import \([^)]*\bsession\b", text, re.M
        ):
            return _search_cookie_name(sources, r"SESSION_COOKIE_NAME['\"\]]*\s*=\s*['\"]([\w.-]+)['\"]") or (
                "session",
                name,
            )
    return None


def _search_cookie_name(sources: Sequence[tuple[str, str]], pattern: str) -> tuple[str, str] | None:
    for name, text in sources:
        if hit := re.search(pattern, text, re.DOTALL):
            return hit[1], location_of(name, text, hit)
    return None


def describe_user_sources(actors: UserSources, paths: Sequence[tuple[str, str]]) -> Iterator[str]:
    """In a few words, for who reads what was found."""
    if actors.token is not None:
        yield f"token signed with {actors.token.variable}"
    if actors.cookie is not None:
        yield f"cookie {actors.cookie[0]}"
    if actors.header:
        yield f"header {actors.header}"
    if not actors.has_sessions:
        yield from (path for path, _ in paths)
