"""Errors of what people touch; one tree with those of placement and workers (root: ``HeteroError``)."""

from __future__ import annotations

from typing import Any

from hetero.placement.errors import ConfigError, DeviceError, HeteroError, MemoryShortage
from hetero.workers.errors import ModelError

__all__ = [
    "Busy",
    "ClusterError",
    "ConfigError",
    "DeviceError",
    "HeteroError",
    "MemoryShortage",
    "ModelError",
    "RequestError",
    "SequenceFailed",
]


class ClusterError(HeteroError):
    """Ray could not be started or reached, or a worker could not be placed or loaded."""


class RequestError(HeteroError):
    """A request is refused; ``param`` names the field, ``status`` the HTTP status, ``code`` is OpenAI's word for it,
    ``details`` are for Anthropic's clients."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.details = details
        self.param = param
        self.status = status
        self.code = code


class Busy(HeteroError):
    """No more requests are taken now; ``retry``: seconds after which to ask again."""

    def __init__(self, message: str, retry: int) -> None:
        super().__init__(message)
        self.retry = retry


class SequenceFailed(HeteroError):
    """A running sequence cannot go on; ``code`` is the verifier's stable word for why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
