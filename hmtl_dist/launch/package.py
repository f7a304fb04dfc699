"""What a job takes along to a cluster: this package's code, its recipes and spaces, and files of the user's own.

Nothing else: not the folder the user stands in, no virtual environment, no data, no history. What looks like a
credential is refused, since a cluster shows a job's files and command line to whoever may look at its dashboard.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from hmtl_dist.errors import UserError
from hmtl_dist.tracking.redact import redact

MAX_BYTES = 32 << 20
"""The code is 1.5 MB: so much is data that somebody left inside the package."""
_PACKAGE = Path(__file__).resolve().parents[1]
_BESIDE = ("tune_spaces", "constraints.txt")
"""What lies beside the package in a checkout, and inside it where it is installed."""
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*")


def pack(folder: Path, files: Mapping[str, str], package: Path = _PACKAGE) -> int:
    """Fill a new folder with what a job needs, and return its size in bytes.

    Args:
        folder: Folder to fill; it must be empty.
        files: Text of the user's own files, by the relative path that the job's command line calls them by.
        package: Folder of the package to send.

    Raises:
        UserError: It is too large, or a file of the user's own holds what looks like a credential.
    """
    for name, text in files.items():
        _check_text(name, text)
    shutil.copytree(package, folder / "hmtl_dist", ignore=_LEFT_OUT)
    for name in _BESIDE:
        source = package.parent / name
        if (package / name).exists() or not source.exists():
            continue
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=_LEFT_OUT)
        else:
            shutil.copy(source, folder / name)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return _checked_size(folder, package)


def packed_name(source: str) -> str:
    """Return the relative path that a file of the user's own has in the job: its own if it lies below this folder."""
    path = PurePosixPath(source)
    inside = not path.is_absolute() and ".." not in path.parts and not source.startswith("~")
    clashes = path.parts[0] in ("hmtl_dist", *_BESIDE)
    return str(path) if inside and not clashes else f"submitted/{path.name}"


def check_words(words: Sequence[str]) -> None:
    """Refuse a command line with a credential in it: a cluster shows it to whoever may look.

    Raises:
        UserError: One of the words looks like a credential; the message does not repeat it.
    """
    for word in words:
        if redact(word) != word:
            key = word.partition("=")[0] if "=" in word else "an argument"
            raise UserError(
                f"{redact(key)}: holds what looks like a credential, which the cluster would show to everyone; "
                "give it to the nodes, in their environment or a secret, and leave it out here"
            )


def _check_text(name: str, text: str) -> None:
    for number, line in enumerate(text.splitlines(), start=1):
        if redact(line) != line:
            raise UserError(
                f"{name}, line {number}: holds what looks like a credential, which the cluster would show to everyone; "
                "give it to the nodes, in their environment or a secret"
            )


def _checked_size(folder: Path, package: Path) -> int:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise UserError(
            f"the package is {total / 2**20:.1f} MiB, allowed {MAX_BYTES >> 20} MiB; its largest file is "
            f"{largest.relative_to(folder)} ({sizes[largest] / 2**20:.1f} MiB): move it out of {package}, data belongs "
            "into object storage"
        )
    return total
