"""From a worker's spec to what its state machine needs: the engine, and the model's vocabulary."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from hetero.workers.engines.base import Engine
from hetero.workers.engines.registry import EngineSettings, Progress, find_engine, unheard
from hetero.workers.engines.translated import STRETCH, TranslatedEngine
from hetero.workers.models.tokenizer import load_tokenizer
from hetero.workers.models.translation import translation
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.runtime.spec import WorkerSpec

_WINDOW_NODES = 128  # evaluated draft tokens a target holds per sequence: a window's
_TREE_NODES = 512  # a drafter's: all that a window of many draft steps can grow


@dataclass(frozen=True)
class Loaded:
    """What a worker runs. ``vocabulary`` is as large as the model's, which may be padded beyond the tokenizer's."""

    engine: Engine
    vocabulary: Vocabulary


def load_model(spec: WorkerSpec, progress: Progress = unheard) -> Loaded:
    """Load the model; ``progress`` is told the share that is done. Raises HeteroError."""
    engine = load_engine(spec, progress)
    known = load_tokenizer(Path(spec.vocabulary) if spec.vocabulary else spec.path).vocabulary
    padding = [b""] * (engine.limits.vocabulary - len(known))
    return Loaded(engine, Vocabulary([*known.pieces, *padding], known.ends, known.encode, known.names))


def load_engine(spec: WorkerSpec, progress: Progress = unheard) -> Engine:
    """The engine, asked in the tokens that the spec names. Raises HeteroError."""
    settings = replace(settings_of(spec), progress=progress)
    entry = find_engine(spec.engine)
    if not spec.vocabulary or entry.drafts_from_states:  # a head speaks its target's tokens
        return entry.load(settings)
    asked, own = (load_tokenizer(path) for path in (Path(spec.vocabulary), spec.path))
    engine = entry.load(replace(settings, context=ceil(STRETCH * spec.context)))
    begins = asked.encode("", True), own.encode("", True)
    return TranslatedEngine(engine, translation(asked.vocabulary, own.vocabulary), begins)


def settings_of(spec: WorkerSpec) -> EngineSettings:
    """How a worker's engine is to run."""
    return EngineSettings(
        path=spec.path,
        threads=len(spec.cores) or os.cpu_count() or 1,
        sequences=spec.sequences,
        context=spec.context,
        exact=spec.exact,
        gpu=spec.kind if spec.gpus else "",
        gpus=max(1, len(spec.gpus)),
        gpu_layers=spec.gpu_layers,
        draft_nodes=_TREE_NODES if spec.role == "drafter" else _WINDOW_NODES,
        dtype=spec.dtype,
        weights=spec.weights,
        kv_cache=spec.kv_cache,
        group=spec.group,
        features=tuple(spec.features),
        learns=spec.learns,
        target=Path(spec.vocabulary) if spec.vocabulary else None,
        ranks=spec.ranks,
        cores=tuple(spec.cores),
        tensor=spec.role == "target",
    )
