"""Names of users inside the gateway, and those that are reserved for its own use. A real user of such a name gets a
prefix."""

from __future__ import annotations

UNATTRIBUTED = "unattributed"  # the user of a call that belongs to no request
VARIOUS_USERS = "various"  # the user of a row in which several users were summed up
RESERVED_NAMES = frozenset((UNATTRIBUTED, VARIOUS_USERS))
SCHEDULE_PREFIX = "schedule:"  # and its name: the user of what the policy's own schedules ask
RESERVED_PREFIX = "~"
MAX_USER_NAME_LENGTH = 256  # characters


def normalize_user_name(user: str) -> str:
    """The name that a user has inside the gateway, by the name that a client or the app chose.

    A user called `unattributed` becomes `~unattributed`, and so on, so that nobody can take a reserved name and no two
    users become one. The result can be stored by either database, so that it is found again under the same name.
    """
    user = user[:MAX_USER_NAME_LENGTH]
    if not user.isascii() or "\0" in user:
        user = user.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if user.endswith(_ENDS) or user.startswith(_STARTS):
        bare = user.lstrip(RESERVED_PREFIX)
        if bare in RESERVED_NAMES or bare.startswith(SCHEDULE_PREFIX):
            return RESERVED_PREFIX + user
    return user


# What nearly every name fails at once, since this is asked for each request.
_ENDS = tuple(RESERVED_NAMES)
_STARTS = (SCHEDULE_PREFIX, RESERVED_PREFIX)
