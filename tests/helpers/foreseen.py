"""Rankings of pairs whose forwards take what a test says; nothing is loaded."""

from __future__ import annotations

import pytest

from hetero.config import make_config
from hetero.placement.device import Inventory
from hetero.planning.planner import Planner
from hetero.planning.profiles import Profiles
from hetero.planning.ranking import Ranker, Ranking
from hetero.workers.runtime.trial import Trial

TWO = Inventory((0, 1), 64 << 30)
ENGINES = {"target_engine": "llama_cpp", "draft_engine": "llama_cpp"}
TEXT = [n % 7 for n in range(200)]


def trial(first: float, more: float, agreed: float = 0.0) -> Trial:
    """Of ``first`` seconds for a row and ``more`` for each further one; a drafter's first choice is right at ``agreed``
    of the positions."""
    hits = [n * 37 % 100 < 100 * agreed for n in range(len(TEXT))]
    return Trial(
        {rows: first + more * (rows - 1) for rows in (1, 2, 4, 8, 16)}, 1e-5, 100.0, 1.0, 1 << 20,
        samples=[3] * len(TEXT), candidates=[([3, 4], [2.0, 2.0]) if hit else ([4, 5], [0.1, 0.1]) for hit in hits],
    )  # fmt: skip


def ranked(
    monkeypatch: pytest.MonkeyPatch, target: Trial, drafter: Trial, inventory: Inventory = TWO, **settings
) -> Ranking:
    monkeypatch.setattr(Profiles, "of", lambda self, placement, *company: {
        "target": target, "drafter": drafter}[placement.spec.role])  # fmt: skip
    config = make_config({"parallel": 1, **ENGINES, **settings})
    return Ranker(config, inventory, Planner(config, inventory), lambda line: None).rank()
