"""Which pages may ask this server: those of this machine, and those it is told of."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

# Programs that show pages of their own; no page of the web comes from these.
_APPS = ("app", "tauri", "vscode-webview", "vscode-file", "capacitor", "ionic")


def is_loopback(name: str) -> bool:
    """Whether a host's name means this machine."""
    name = name.strip("[]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    return header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header


def allowed(origin: str, more: Sequence[str]) -> bool:
    """Whether pages of an origin may read answers; ``more``: those that are allowed besides the loopback's."""
    if "*" in more or origin.lower() in {each.rstrip("/").lower() for each in more}:
        return True
    try:
        parts = urlsplit(origin)
        return parts.scheme in _APPS or (parts.scheme in ("http", "https") and is_loopback(parts.hostname or ""))
    except ValueError:
        return False


def foreign(headers: Headers, more: Sequence[str]) -> str:
    """The origin of the page that asks, where it is one that may not; "" for all others."""
    origin = headers.get("origin", "")
    if not origin or allowed(origin, more) or headers.get("sec-fetch-site") == "same-origin":
        return ""
    try:
        same = urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    except ValueError:
        same = False
    return "" if same else origin
