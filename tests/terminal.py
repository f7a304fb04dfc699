"""A terminal that programs of tests run on."""

import os
import pty
import re
import subprocess
import sys


def frames(program: str, columns: int, *arguments: str) -> list[str]:
    """Run a program on a terminal of so many columns and return the lines that it drew, frame by frame."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(columns)}
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=follower, env=environment)
    os.close(follower)
    text = b""
    try:
        while chunk := os.read(leader, 4096):
            text += chunk
    except OSError:  # how Linux says that the other end was closed
        pass
    os.close(leader)
    assert process.wait() == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode())
    return [frame.rstrip() for frame in re.split(r"[\r\n]+", plain) if frame.strip()]
