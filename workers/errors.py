"""Errors of engines and of the wire. Each is final for the sequence it names, never for the loop."""

from __future__ import annotations

from hetero.placement.errors import HeteroError


class ModelError(HeteroError):
    """A model file is missing, malformed, of an unsupported kind, or does not match its partner."""


class EngineError(HeteroError):
    """A forward or a cache operation failed; the engine's state is as it was before the call."""


class EngineLost(EngineError):
    """The engine cannot go on: its worker ends, and another takes its place."""


class Unsupported(EngineError):
    """The engine cannot do this at all (recurrent memory that cannot roll back, a tree in exact mode)."""


class UnknownNode(EngineError):
    """A sequence or node id that the engine does not hold, or a node id that is not new."""


class KvFull(EngineError):
    """No KV cells are left for these rows."""


class TooManyLeaves(EngineError):
    """More live branches or sequences than the engine has room for."""


class Aborted(EngineError):
    """The forward was stopped by ``abort``."""


class NotFinite(EngineError):
    """The logits of a row hold NaN or no finite value."""


class GrammarError(EngineError):
    """A grammar cannot be followed: it is invalid, too complex, or was left."""


class WireError(HeteroError):
    """A frame is malformed, oversized or not one of the known messages."""
