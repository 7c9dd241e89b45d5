"""Names of users that are ours to give. Whoever is really called so is told apart by a mark."""

from __future__ import annotations

NOBODY = "unattributed"  # whose call it is when nobody owns it
VARIOUS = "various"  # whose a sum is that no longer tells its users apart
OURS = frozenset((NOBODY, VARIOUS))
MARK = "~"
LONGEST = 256  # characters


def named(user: str) -> str:
    """What a user is called in here, by the name that they, a client or an app chose: `~unattributed` for one called
    `unattributed`, and so on, so that nobody poses as nobody and no two become one.

    Fit for either database, so that what was written down is found under the same name again.
    """
    user = user[:LONGEST]
    if not user.isascii() or "\0" in user:
        user = user.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return MARK + user if user.endswith(_ENDS) and user.lstrip(MARK) in OURS else user


_ENDS = tuple(OURS)
