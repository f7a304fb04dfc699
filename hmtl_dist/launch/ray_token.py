"""The token with which a Ray cluster is asked for anything, found where Ray itself looks for it."""

import os
from collections.abc import Mapping
from pathlib import Path

from hmtl_dist.errors import UserError


def find_token(environment: Mapping[str, str]) -> str | None:
    """Return the token that Ray would send: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or `~/.ray/auth_token`.

    None where there is none, or where RAY_AUTH_MODE switches tokens off.

    Raises:
        UserError: RAY_AUTH_TOKEN_PATH names a file that cannot be read.
    """
    if environment.get("RAY_AUTH_MODE", "token").lower() == "disabled":
        return None
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    file = Path(os.path.expanduser(named or "~/.ray/auth_token"))  # noqa: PTH111  # also without a home folder
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        if not named:
            return None
        raise UserError(
            f"RAY_AUTH_TOKEN_PATH: {file} cannot be read; name the file with the cluster's token"
        ) from error
