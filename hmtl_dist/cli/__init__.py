"""The command line. Parse, call, print: no logic, and nothing heavy is imported before a command needs it."""

import locale
import os
import pwd
import sys

from hmtl_dist import garbage


def main() -> None:
    """Run the command line `hmtl-dist`."""
    _speak_utf8()
    _name_the_user()
    garbage.collect_rarely()
    try:
        _run()
    except ModuleNotFoundError as error:
        missing = (error.name or "hmtl_dist").partition(".")[0]
        if missing == "hmtl_dist":
            raise
        print(  # noqa: T201  # typer may be what is missing, on a node of a cluster for example
            f"error: the package '{missing}' is not installed for {sys.executable}; install what this program needs: "
            "pip install -c constraints.txt .",
            file=sys.stderr,
        )
        raise SystemExit(2) from error
    finally:
        garbage.collect_no_more()


def _speak_utf8() -> None:
    """Take files, names and arguments as UTF-8 where the machine says otherwise; a terminal gets what it can show."""
    encoding = locale.getencoding().lower()
    odd = encoding not in ("utf-8", "utf8")
    if odd and not sys.flags.utf8_mode and not sys.flags.ignore_environment:
        os.environ["PYTHONUTF8"] = "1"  # also for the processes of a run
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # this program, again
    plain = locale.setlocale(locale.LC_CTYPE) in ("C", "POSIX")  # which says nothing of the terminal
    shown = encoding if odd and not plain and sys.stdout.isatty() else "utf-8"
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(encoding=shown, errors="backslashreplace")
    for argument in sys.argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            print(f"error: argument {argument!a} is not UTF-8; give another name", file=sys.stderr)  # noqa: T201
            raise SystemExit(2) from None


def _name_the_user() -> None:
    """Name a user whom the machine does not know, as in a container that was started with any number: libraries ask."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", str(os.getuid()))
        if "HMTL_HOME" in os.environ:
            os.environ.setdefault("HOME", os.environ["HMTL_HOME"])


def _run() -> None:
    from hmtl_dist.cli.app import Commands, app

    try:
        app(prog_name="hmtl-dist")
    except SystemExit:
        if Commands.interrupted:  # at once: Python itself would wait for uploads under way, which may have stalled
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        raise
