"""What a person who runs the program can cause, and mend."""

import errno

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
