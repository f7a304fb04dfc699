"""What a person who runs the program can cause, and mend."""

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

STORAGE_TROUBLE = {
    errno.EACCES: "permission denied",
    errno.EDQUOT: "the disk quota is used up",
    errno.ENOSPC: "no space is left on the device",
    errno.EROFS: "the file system is read-only",
}
"""What an `OSError` says of a folder that the user has to mend, by its number."""


class UserError(Exception):
    """Something the user can mend: the command line prints its one line and exits with code 2.

    The message says what was given, what is allowed and what to do, in one line and without a traceback.
    """


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name closest to a mistyped one, if one is close."""
    close = get_close_matches(name, list(allowed), n=1)
    return close[0] if close else None


def unknown(path: str, given: str, allowed: Sequence[str]) -> str:
    """Say in one line that a name is not among the allowed ones, and which is nearest."""
    close = nearest(given, allowed)
    hint = f"; did you mean '{close}'?" if close else ""
    return f"{path}: '{given}' is not one of {', '.join(allowed) or '(none)'}{hint}"
