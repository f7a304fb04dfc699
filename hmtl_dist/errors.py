"""The one exception for what a person who runs the program can cause, and mend."""


class UserError(Exception):
    """Something the user can mend: the command line prints its one line and exits with code 2.

    The message says what was given, what is allowed and what to do, in one line and without a traceback.
    """
