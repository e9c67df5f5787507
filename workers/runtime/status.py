"""What a worker tells of itself: one immutable account, plain enough to travel over Ray."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class DrafterStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A drafter as its verifier sees it: nodes it brought to draft trees, how many of them were accepted; seconds of
    its draft step, and from a commit told to the first draft below it."""

    index: int
    drafted: int
    accepted: int
    step_s: float
    answer_s: float


class SpeedStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a verifier has measured: chances that a drafter's first candidate, or any, is right; committed tokens a
    second; and seconds of a forward by its rows, with drafts and (by sequences) without. ``alpha_first``: of the first
    drafts there were."""

    alpha: float
    beta: float
    rate: float
    forward: list[tuple[int, float]]
    plain: list[tuple[int, float]]
    alpha_first: float = 0.0


class WorkerStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``phase``: where the worker stands, with its ``failure`` in one line; ``endpoint``, ``public``: where a verifier
    listens, and its key (hex); ``turned_away``: peers without a known key; ``active``, ``waiting``: sequences;
    ``cells``: KV cells held when it was last idle; ``prefixes``: cached ones, with their tokens; ``memory`` in bytes;
    ``busy_s``: seconds its engine worked; ``forwards``: of windows or leaves, with their ``rows`` and ``forward_s``
    seconds; ``fetched``: bytes of its model that came from another machine;
    ``repacked``: the share of it that its engine has made ready; ``landings``: where commits came down on Mirror-SD's
    branches; ``lessons`` a drafter that learns holds, and ``studied`` steps of learning."""

    role: Literal["target", "drafter"]
    index: int
    phase: Literal["loading", "ready", "stopped", "failed"]
    failure: str
    epoch: int
    endpoint: str
    public: str
    turned_away: int
    pid: int
    loaded_s: float
    active: int
    waiting: int
    idle: bool
    cells: int
    gpu: str
    prefixes: int
    prefix_tokens: int
    dropped: int
    memory: int
    busy_s: float
    forwards: int
    rows: int
    forward_s: float
    fetched: int
    repacked: float
    early_exit: bool
    landings: dict[str, int] = {}
    lessons: int = 0
    studied: int = 0
    speeds: SpeedStatus | None = None
    drafters: list[DrafterStatus] = []

    def plain(self) -> dict[str, Any]:
        """As builtins."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


def read_status(plain: dict[str, Any]) -> WorkerStatus:
    """The inverse of ``plain``; raises msgspec.ValidationError."""
    return msgspec.convert(plain, WorkerStatus)
