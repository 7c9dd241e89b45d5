"""Who acts: what the code of an app knows its users by. A path says whose page is looked at, not who looks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from proxy.cli.detect.path_templates import fits
from proxy.cli.detect.project_files import Folder
from proxy.cli.detect.routes import Seen
from proxy.policy.value_types import TEMPLATE

USERS = (
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
PEOPLE = re.compile(r"(?:users?|accounts?|members?|customers?|profiles?|people|u)$", re.IGNORECASE)
TOKENS = {"pyjwt", "python-jose", "authlib", "fastapi-users", "djangorestframework-simplejwt", "flask-jwt-extended"}
TOKENS |= {"jsonwebtoken", "jose", "passport-jwt", "fastify-jwt", "@fastify/jwt", "express-jwt"}

_HEADER = re.compile(r"['\"](X-(?:User|Account|Customer)(?:-Id|-Name)?)['\"]|\bx_user_id\b\s*:", re.IGNORECASE)
_PARAMETER = re.compile(r"\{(\w+)[^}]*\}|<(?:\w+:)?(\w+)>|:(\w+)")
_READS_COOKIE = re.compile(r"\bcookies(?:\.get\(|\[|\.)\s*['\"]?([\w.-]+)\b(?!\s*=[^=])", re.IGNORECASE)
_OF_SESSION = re.compile(r"sess(?:ion|_?id)|token|auth(?!or)|jwt|(?:^|[._-])sid(?:$|[._-])", re.IGNORECASE)
# The cookies of programs whose code is not here.
_OWN = {"open-webui": "token", "datasette": "ds_actor"}
_DECODES = re.compile(r"\bjwt\.(?:decode|verify)\(\s*[^,()]+(?:\([^()]*\))?\s*,\s*([^,\n]+?)\s*(?:,|\))")
_ALGORITHM = re.compile(r"\b(HS(?:256|384|512))\b")
_CLAIM = re.compile(
    r"\b(?:payload|claims|decoded|data|token_data)(?:\.get\(|\[|\.)\s*['\"]?(sub|user_id|userId|uid|username)\b"
)
_ENVIRONMENT = r"(?:environ\.get\(|environ\[|getenv\(|process\.env\.|env\(|config\()\s*['\"]?([A-Z][A-Z0-9_]*)"


@dataclass(frozen=True, slots=True)
class Token:
    """A JSON Web Token that the code verifies: the variable that its key is in, one of HS256 and the like."""

    variable: str
    algorithm: str
    claim: str
    where: str


@dataclass(frozen=True, slots=True)
class Actors:
    """`cookie` is its name and where it was seen; `changing`: a session whose cookie is another at each answer."""

    token: Token | None = None
    cookie: tuple[str, str] | None = None
    header: str = ""
    has_tokens: bool = False
    changing: bool = False

    @property
    def told(self) -> bool:
        """Whether anything says who acts."""
        return self.token is not None or self.cookie is not None or bool(self.header)

    @property
    def signed_in(self) -> bool:
        """Whether users are known by a session, whether or not its cookie can be read here."""
        return self.told or self.changing


def find_actors(folder: Folder, needs: Collection[str]) -> Actors:
    sources = list(folder.sources(".py", ".js", ".ts", ".mjs", ".cjs"))
    header = ""
    for _, text in sources:
        if found := _HEADER.search(text):
            header = found[1] or "X-User-Id"
            break
    return Actors(
        token=_token(sources),
        cookie=_cookie(sources, needs),
        header=header,
        has_tokens=bool(TOKENS & set(needs)),
        changing=any("starlette.middleware.sessions" in text for _, text in sources) or "next-auth" in needs,
    )


def user_paths(routes: Sequence[Seen]) -> list[tuple[str, str]]:
    """Path templates that name users, those first that fit most routes, and where each was seen."""
    counts: Counter[str] = Counter()
    where: dict[str, str] = {}
    for one in routes:
        for match in _PARAMETER.finditer(one.path):
            before = one.path[: match.start()]
            name = (match[1] or match[2] or match[3]).lower()
            if name in USERS or (before.endswith("/") and PEOPLE.search(before.rstrip("/").rpartition("/")[2])):
                before = re.sub(r"\{[^}]*\}|<[^>]*>|:\w+", "*", before)
                template = f"{before}{{user}}" + ("/*" if one.path[match.end() :].strip("/") else "")
                if not fits(TEMPLATE, template):
                    continue
                counts[template] += 1
                where.setdefault(template, one.where)
                break
    return [(path, where[path]) for path, _ in counts.most_common() if f"{path}/*" not in counts]


def _token(sources: Sequence[tuple[str, str]]) -> Token | None:
    whole = "\n".join(text for _, text in sources)
    for name, text in sources:
        hit = _DECODES.search(text)
        if hit is None:
            continue
        variable = _variable(hit[1], whole)
        algorithm = _ALGORITHM.search(text) or _ALGORITHM.search(whole)
        if variable and (algorithm or name.endswith((".js", ".ts", ".mjs", ".cjs"))):
            claim = _CLAIM.search(text)
            line = text.count("\n", 0, hit.start()) + 1
            return Token(
                variable, algorithm[1] if algorithm else "HS256", claim[1] if claim else "sub", f"{name}:{line}"
            )
    return None


def _variable(expression: str, whole: str) -> str:
    """The variable of the environment that a key comes from: named there, where it is assigned, or by a setting."""
    if direct := re.search(_ENVIRONMENT, expression):
        return direct[1]
    name = re.split(r"\W+", expression.rstrip(")").removesuffix(".get_secret_value(").strip())[-1]
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        return ""
    if assigned := re.search(rf"\b{name}\b\s*(?::[^=\n]+)?=\s*[^\n]*?{_ENVIRONMENT}", whole):
        return assigned[1]
    if re.search(rf"\b{name}\s*=\s*['\"]", whole):
        return ""  # a constant: it is not in the environment
    return name.upper() if "." in expression else ""


def _cookie(sources: Sequence[tuple[str, str]], needs: Collection[str]) -> tuple[str, str] | None:
    """The cookie that stays the same while somebody is signed in."""
    for name, text in sources:
        if "django.contrib.sessions" in text:
            return _named(sources, r"SESSION_COOKIE_NAME\s*=\s*['\"]([\w.-]+)['\"]") or ("sessionid", name)
        if "CookieTransport(" in text:
            return _named([(name, text)], r"cookie_name\s*=\s*['\"]([\w.-]+)['\"]") or ("fastapiusersauth", name)
        if "express-session" in text and "express-session" in needs:
            return _named([(name, text)], r"\bsession\(\{[^}]*?\bname\s*:\s*['\"]([\w.-]+)['\"]") or (
                "connect.sid",
                name,
            )
    for name, text in sources:
        for hit in _READS_COOKIE.finditer(text):
            if _OF_SESSION.search(hit[1]) and re.search("[cx]srf", hit[1], re.IGNORECASE) is None:
                return hit[1], f"{name}:{text.count(chr(10), 0, hit.start()) + 1}"
    for program, cookie in _OWN.items():
        if program in needs:
            return cookie, f"{program}'s own code"
    for name, text in sources:
        if re.search(
            r"^from flask import [^\n]*\bsession\b|\bflask_login\b|^from flask import \([^)]*\bsession\b", text, re.M
        ):
            return _named(sources, r"SESSION_COOKIE_NAME['\"\]]*\s*=\s*['\"]([\w.-]+)['\"]") or ("session", name)
    return None


def _named(sources: Sequence[tuple[str, str]], pattern: str) -> tuple[str, str] | None:
    for name, text in sources:
        if hit := re.search(pattern, text, re.DOTALL):
            return hit[1], f"{name}:{text.count(chr(10), 0, hit.start()) + 1}"
    return None


def shown(actors: Actors, paths: Sequence[tuple[str, str]]) -> Iterator[str]:
    """In a few words, for who reads what was found."""
    if actors.token is not None:
        yield f"token signed with {actors.token.variable}"
    if actors.cookie is not None:
        yield f"cookie {actors.cookie[0]}"
    if actors.header:
        yield f"header {actors.header}"
    if not actors.signed_in:
        yield from (path for path, _ in paths)
