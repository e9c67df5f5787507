"""What quantisation costs: perplexity on held-out text, engine by engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hetero.data import HELD_OUT
from hetero.workers.engines.base import Engine, Row
from hetero.workers.engines.registry import EngineSettings, find_engine
from hetero.workers.models.tokenizer import Tokenizer

_WINDOW = 32  # rows a forward


def held_out(tokenizer: Tokenizer, count: int) -> list[int]:
    """Tokens of a text that no model of ours was trained on, and that never changes: Python, as hetero's own source was
    in November 2026."""
    return tokenizer.encode(HELD_OUT.read_text()[: count * 16])[:count]


def engine_perplexities(target: Path, engines: Sequence[str], threads: int, tokens: Sequence[int]) -> dict[str, float]:
    """Perplexity of a file on ``tokens``, by engine."""
    found = {}
    for name in engines:
        engine = find_engine(name).load(EngineSettings(target, threads, sequences=1, context=len(tokens) + 64))
        found[name] = perplexity(engine, tokens)
        engine.shutdown()
    return found


def perplexity(engine: Engine, tokens: Sequence[int]) -> float:
    """exp of the mean negative log-likelihood of ``tokens`` but the first, in windows of rows."""
    engine.prefill(1, tokens[:1])
    losses = []
    for first in range(1, len(tokens) - 1, _WINDOW):
        chunk = tokens[first : min(first + _WINDOW, len(tokens) - 1)]
        outcome = engine.extend([Row(1, first + n, first + n - 1, token) for n, token in enumerate(chunk)])
        for n in range(len(chunk)):
            logits = outcome.logits(n).astype(np.float64)
            peak = logits.max()
            losses.append(peak + math.log(np.exp(logits - peak).sum()) - logits[tokens[first + n + 1]])
        engine.commit(1, first + len(chunk) - 1)
    engine.close(1)
    return math.exp(sum(losses) / len(losses))
