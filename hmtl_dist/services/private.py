"""Files that hold credentials."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Writes or replaces a file that only its owner may read, at no moment readable by others or half written."""
    temporary = path.with_name(path.name + ".partial")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600, exist_ok=False)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
