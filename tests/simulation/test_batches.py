"""Several streams of one target: drafts share a forward by what they are worth, and step back as it fills."""

from __future__ import annotations

import numpy as np
import pytest

from hetero.placement.agreement import assumed
from hetero.workers.simulation.forecast import Duet, Play

# Seconds of a CPU target's forward: little more up to eight rows, then in proportion.
ROWS, SECONDS = (1, 4, 8, 16, 32, 128), (0.060, 0.066, 0.078, 0.118, 0.215, 0.83)
AGREEMENT = assumed(0.8, seed=1, count=1 << 12)


def rates(streams: int, name: str) -> tuple[float, list[float]]:
    """Tokens a second of all streams together, and of each."""

    def verify(rows: int) -> float:
        return float(np.interp(rows, ROWS, SECONDS))

    draft = (lambda rows: 0.004 * max(1.0, rows / 16)) if name != "off" else None
    played = Play(Duet(name, 0, verify, draft, AGREEMENT, rows=128, leaves=64), 120, 1, streams)
    ends = [end.stats for end in played.pair.client.finished]
    return played.result().rate, [1e3 * end.predicted_n / end.predicted_ms for end in ends]


@pytest.mark.parametrize(
    "streams, gain",
    [
        (1, 2.0),
        (4, 1.4),
        pytest.param(8, 1.08, marks=pytest.mark.long),
        pytest.param(16, 0.95, marks=pytest.mark.long),
    ],
)
def test_drafts_bring_what_the_forward_has_room_for(streams, gain):
    """As one after another took what was worth it, and paid for each other's rows, 4 streams had 0.9 of plain's rate,
    8 had 0.8."""
    plain, _ = rates(streams, "off")
    together, each = rates(streams, "ahead")
    assert together > gain * plain
    assert min(each) > 0.6 * max(each)  # nobody rests while the others' rows hold it up
