"""The token Ray asks of everybody who comes: where Ray itself keeps it, so that all its tools find it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from hetero.errors import ClusterError


def token_file() -> Path:
    """$RAY_AUTH_TOKEN_PATH, or Ray's place in the user's home."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def known_token() -> str:
    """The token of this machine's user; "" where there is none."""
    try:
        return os.environ.get("RAY_AUTH_TOKEN") or token_file().read_text().strip()
    except OSError:
        return ""


def own_token() -> str:
    """The token of this machine's user, made at the first call. Raises ClusterError where it cannot be kept."""
    if found := known_token():
        return found
    file, token = token_file(), secrets.token_hex(32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(token)
    except OSError as error:
        raise ClusterError(f"the token cannot be kept in {file}: {error.strerror or error}") from None
    return token


def use_token(token: str) -> None:
    """Have Ray in this process, and in those it starts, ask for and bring this token. Before Ray is imported."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = token
