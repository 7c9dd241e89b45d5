"""Names of users that are ours to give. Whoever is really called so is told apart by a mark."""

from __future__ import annotations

UNATTRIBUTED = "unattributed"  # whose call it is when nobody owns it
VARIOUS_USERS = "various"  # whose a sum is that no longer tells its users apart
RESERVED_NAMES = frozenset((UNATTRIBUTED, VARIOUS_USERS))
RESERVED_PREFIX = "~"
MAX_USER_NAME_LENGTH = 256  # characters


def normalize_user_name(user: str) -> str:
    """What a user is called in here, by the name that they, a client or an app chose: `~unattributed` for one called
    `unattributed`, and so on, so that nobody poses as nobody and no two become one.

    Fit for either database, so that what was written down is found under the same name again.
    """
    user = user[:MAX_USER_NAME_LENGTH]
    if not user.isascii() or "\0" in user:
        user = user.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return RESERVED_PREFIX + user if user.endswith(_ENDS) and user.lstrip(RESERVED_PREFIX) in RESERVED_NAMES else user


_ENDS = tuple(RESERVED_NAMES)
