"""An engine that is asked in another model's tokens: a drafter of another vocabulary.

The noise of a sample belongs to the target's tokens, so logits are translated before anything is drawn, and a drafter's
samples stay coupled with the target's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from hetero.workers.engines.base import Engine, EngineLimits, OnEarlyExit, Outcome, Row
from hetero.workers.errors import UnknownNode
from hetero.workers.models.translation import Translation
from hetero.workers.sampling.logits_processors import Logits

_SPELT = 64  # further draft tokens an engine holds for committed ones that are several of its own
STRETCH = 1.15  # own tokens that one of a text takes, at most, or a sequence fills before its context is full


@dataclass(slots=True)
class _Sequence:
    """``nodes``: of each node that the engine holds its own ones, top down."""

    nodes: dict[int, list[int]] = field(default_factory=lambda: {0: [0]})
    next: int = 1


class TranslatedEngine:
    """Without prefixes: their lengths would be of other tokens."""

    limits: EngineLimits

    def __init__(
        self, engine: Engine, translation: Translation, begins: tuple[Sequence[int], Sequence[int]] = ((), ())
    ) -> None:
        """``begins``: what a text begins with, in the tokens it is asked in and in its own."""
        self._engine, self._translation = engine, translation
        self._begins = begins
        own = engine.limits
        self.limits = replace(
            own,
            vocabulary=len(translation.asked),
            context=int(own.context / STRETCH),
            draft_nodes=own.draft_nodes - min(_SPELT, own.draft_nodes // 4),
            early_exit=False,
            prefixes=False,
        )
        self._sequences: dict[int, _Sequence] = {}

    def prefill(self, seq: int, tokens: Sequence[int], every: bool = False) -> Outcome:
        asked, begin = self._begins
        text, own = list(tokens), list[int]()
        if seq not in self._sequences:
            begins = not every and text[: len(asked)] == list(asked)
            own += begin if begins else ()
            text = text[len(asked) :] if begins else text
        last: list[int] = []  # of each token its last own one
        if every:
            for token in text:
                own += self._translation.spelt(token)
                last.append(len(own) - 1)
        else:
            own += self._translation.of(text) if text else []
            last.append(len(own) - 1)
        most = self._engine.limits.chunk
        parts: list[Outcome] = []
        for first in range(0, len(own), most):
            outcome = self._engine.prefill(seq, own[first : first + most], every)
            more = every and first + most < len(own)
            parts.append(_Kept({at: outcome.logits(at).copy() for at in range(most)}) if more else outcome)
        self._sequences.setdefault(seq, _Sequence())
        places = [divmod(at, most) for at in last] if every else [(len(parts) - 1, 0)]
        return _Translated(parts, places, self._translation)

    def extend(self, rows: Sequence[Row], on_early_exit: OnEarlyExit | None = None) -> Outcome:
        own: list[Row] = []
        last: list[int] = []  # of each row of the call, its last own one
        new: dict[tuple[int, int], list[int]] = {}
        for row in rows:
            sequence = self._sequences.get(row.seq)
            above = new.get((row.seq, row.parent)) or (sequence.nodes.get(row.parent) if sequence is not None else None)
            if sequence is None or above is None:
                raise UnknownNode(f"sequence {row.seq}: node {row.node} hangs on unknown node {row.parent}")
            parent, made = above[-1], []
            for token in self._translation.spelt(row.token):
                own.append(Row(row.seq, sequence.next, parent, token, row.committed))
                made.append(parent := sequence.next)
                sequence.next += 1
            new[row.seq, row.node] = made
            last.append(len(own) - 1)
        most = self._engine.limits.rows
        places = [divmod(at, most) for at in last]
        parts = []
        for first in range(0, len(own), most):
            outcome = self._engine.extend(own[first : first + most])
            wanted = [at for part, at in places if part == first // most] if first + most < len(own) else []
            parts.append(_Kept({at: outcome.logits(at).copy() for at in wanted}) if wanted else outcome)
        for (seq, node), made in new.items():
            self._sequences[seq].nodes[node] = made
        return _Translated(parts, places, self._translation)

    def commit(self, seq: int, node: int, keep: Collection[int] = ()) -> None:
        sequence = self._sequences.get(seq)
        if sequence is None or node not in sequence.nodes:
            raise UnknownNode(f"commit of node {node} of sequence {seq}, which is not held")
        kept = {other: own for other, own in sequence.nodes.items() if other in keep}
        self._engine.commit(seq, sequence.nodes[node][-1], frozenset(n for own in kept.values() for n in own))
        sequence.nodes = {node: sequence.nodes[node], **kept}

    def close(self, seq: int) -> None:
        self._sequences.pop(seq, None)
        self._engine.close(seq)

    def save_prefix(self, seq: int, key: int, length: int) -> None:
        raise NotImplementedError("limits.prefixes")

    def load_prefix(self, seq: int, key: int, length: int) -> None:
        raise UnknownNode(f"prefix {key}: none is kept")

    def drop_prefix(self, key: int) -> None:
        """None is kept."""

    def abort(self) -> None:
        self._engine.abort()

    def shutdown(self) -> None:
        self._engine.shutdown()

    @property
    def used_cells(self) -> int:
        return self._engine.used_cells


class _Kept(Outcome):
    """Logits of an earlier forward of the same call."""

    def __init__(self, rows: dict[int, Logits]) -> None:
        self._rows = rows

    def logits(self, row: int) -> Logits:
        return self._rows[row]


class _Translated(Outcome):
    """``places``: of each row (the part, the row in it)."""

    def __init__(self, parts: Sequence[Outcome], places: Sequence[tuple[int, int]], translation: Translation) -> None:
        self._parts, self._places, self._translation = parts, places, translation

    def logits(self, row: int) -> Logits:
        part, at = self._places[row]
        return self._translation.logits(self._parts[part].logits(at))
