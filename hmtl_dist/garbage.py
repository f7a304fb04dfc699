"""When Python's garbage collector looks, so that it does not look in vain.

Importing torch, Ray and MLflow makes 600,000 objects that stay. To look at them again and again while they are made is
a quarter of the time that importing takes, and to look once more at the end is two to three seconds.
"""

import gc

_USUAL = gc.get_threshold()
_RARELY = (100_000, *_USUAL[1:])
"""Objects made since the last look, and how many looks at the young ones come before one at older ones."""


def collect_rarely() -> None:
    """Look rarely from now on: this process is going to import much."""
    gc.set_threshold(*_RARELY)


def collect_as_usual() -> None:
    """After `collect_rarely`: look as often as Python does by itself, and never again at what is there by now.

    Else nothing is done: what is there may be garbage, and how often to look is the caller's own choice.
    """
    if gc.get_threshold() != _RARELY:
        return
    gc.freeze()
    gc.set_threshold(*_USUAL)


def collect_no_more() -> None:
    """Do not look when the process ends."""
    gc.freeze()
