"""Acceptance: walk a tree from its root by the one rule, the target decides.

Every committed token is the target's own sample at its position; a draft token is accepted exactly when it equals it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hetero.workers.decoding.kv_cursor import KvCursor
from hetero.workers.engines.base import Outcome
from hetero.workers.errors import EngineError
from hetero.workers.sampling.sampler import Sampler
from hetero.workers.wire.messages import Logprob


@dataclass(slots=True)
class Walk:
    """What a window committed: ``tokens`` new ones, ``accepted`` of them drafted and checked in the window, by
    ``sources``: how many each had proposed first, by ``drafters``: how many each model drafter had, first or not;
    ``found``: how many would have been there without one.

    Of the ``offered`` nodes it came by that model drafters had proposed tokens below, the likeliest of those was right
    at ``agreed`` and any of them at ``foreseen``. ``ended`` tells that the sequence is over; ``failure`` that a row
    could not be sampled; ``rows`` are those it went by, whose tokens are committed; ``missed``: of those the ones where
    a model drafter's likeliest was wrong, with the position they speak of.
    """

    tokens: int = 0
    accepted: int = 0
    found: int = 0
    offered: int = 0
    agreed: int = 0
    foreseen: int = 0
    ended: bool = False
    failure: EngineError | None = None
    sources: Counter[int] = field(default_factory=Counter)
    drafters: Counter[int] = field(default_factory=Counter)
    rows: list[int] = field(default_factory=list)
    missed: list[tuple[int, int]] = field(default_factory=list)


def walk(
    cursor: KvCursor,
    rows: Mapping[int, int],
    outcome: Outcome,
    sampler: Sampler,
    take: Callable[[int, Logprob | None], bool],
) -> Walk:
    """Commit the target's samples along the tree.

    ``rows`` maps a node to its row of the outcome and holds the root. ``take`` receives each token, with its logprob
    where those are asked for, and returns True when the sequence ends with it: nothing beyond it is sampled, counted or
    committed.
    """
    walked = Walk()
    node = cursor.tree.root
    while (row := rows.get(node)) is not None:
        try:
            token = outcome.sample(row, sampler, cursor.tree.position + 1)
            wanted = sampler.spec.logprobs
            logprob = sampler.logprob(outcome.logits(row), token, wanted) if wanted >= 0 else None
        except EngineError as failure:
            walked.failure = failure
            return walked
        walked.rows.append(row)
        likeliest = cursor.tree.likeliest(node, drafted=True)
        if likeliest is not None:
            walked.offered += 1
            walked.agreed += likeliest.token == token
            if likeliest.token != token:
                walked.missed.append((row, cursor.tree.position + 1))
            known = cursor.tree[node].children.get(token)
            walked.foreseen += known is not None and cursor.tree[known].drafted
        node = cursor.commit(token)
        walked.tokens += 1
        if node in rows:
            walked.accepted += 1
            walked.sources[cursor.tree[node].source] += 1
            walked.drafters[cursor.tree[node].drafter] += 1
            walked.found += cursor.tree[node].found
        if take(token, logprob):
            walked.ended = True
            return walked
    return walked
