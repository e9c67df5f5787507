"""The root of hetero's one error tree, and the errors of placing models on devices."""

from __future__ import annotations

_LONGEST = 4000  # characters of an error


def one_line(text: str) -> str:
    """A text that may quote strangers, as one line of characters that can be printed."""
    text = text[: 2 * _LONGEST].strip()
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


class HeteroError(Exception):
    """Every error a user can meet derives from this; its text is one line that names the field and the fix."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class ConfigError(HeteroError):
    """A setting is unknown, out of range or at odds with another one."""


class DeviceError(HeteroError):
    """A device name is malformed, absent on this machine, or asked for twice."""


class MemoryShortage(HeteroError):
    """A model and its KV cache do not fit the device's free memory."""
