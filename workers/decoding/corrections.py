"""What the target thought where a drafter's guess was wrong, for drafters that learn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from hetero.workers.engines.base import Outcome
from hetero.workers.errors import EngineError
from hetero.workers.wire.messages import Correction

TOP = 16  # likeliest tokens that are told


def corrections(seq: int, epoch: int, missed: Iterable[tuple[int, int]], outcome: Outcome) -> Iterator[Correction]:
    """Of rows of an outcome, each with the position of the token it speaks of."""
    for row, position in missed:
        try:
            logits = outcome.logits(row)
        except EngineError:
            continue
        count = min(TOP, len(logits))
        ids = np.argpartition(logits, -count)[-count:]
        ids = ids[np.argsort(-logits[ids])]
        top = logits[ids[0]]
        logprobs = logits[ids] - top - np.log(np.exp(logits - top).sum(dtype=np.float64))
        if np.isfinite(logprobs).all():
            yield Correction(seq, epoch, position, ids.tolist(), np.minimum(logprobs, 0.0).tolist())
