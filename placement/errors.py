"""The root of hetero's one error tree, and the errors of placing models on devices."""

from __future__ import annotations


class HeteroError(Exception):
    """Every error a user can meet derives from this; its text is one line that names the field and the fix."""


class ConfigError(HeteroError):
    """A setting is unknown, out of range or at odds with another one."""


class DeviceError(HeteroError):
    """A device name is malformed, absent on this machine, or asked for twice."""


class MemoryShortage(HeteroError):
    """A model and its KV cache do not fit the device's free memory."""
