"""Heads: small models that draft from the target's hidden states, as the directories that people publish tell of them.

EAGLE-3 (Li et al. 2025) in the layouts of SGLang (``LlamaForCausalLMEagle3``) and of speculators and vLLM
(``speculators_model_type``); Dovetail's dynamic gating fusion (Zhang et al. 2024) in one of our own
(``DovetailForCausalLM``): llama's keys, and ``target_hidden_size``. A checkpoint's own next-token layers (MTP), as a
GGUF file of their own (``next_layers``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetero.workers.errors import ModelError
from hetero.workers.models.directory import check_directory
from hetero.workers.models.metadata import read_metadata
from hetero.workers.models.next_layers import stand_alone, why_not

EAGLE3, DOVETAIL, OWN_LAYERS = "eagle3", "dovetail", "mtp"
_ARCHITECTURES = {
    "LlamaForCausalLMEagle3": EAGLE3,
    "Eagle3LlamaForCausalLM": EAGLE3,
    "Eagle3Speculator": EAGLE3,
    "DovetailForCausalLM": DOVETAIL,
}
NEXT = -1  # of a target's layers: what its own next-token layers draw from
_LAYERS, _WIDTH, _STATES = 1 << 10, 1 << 17, 8  # more is a damaged file
_FEATURES = 1 << 18  # numbers of a token's, as they travel


@dataclass(frozen=True)
class HeadConfig:
    """A head. ``numbers``: as transformers' Llama has them; ``width`` of the target's states; ``layers`` whose input it
    wants of the target (None: the usual three of EAGLE-3, or what leaves the last layer); ``proposes``: tokens of the
    target's it can propose; ``normed``: EAGLE-3's residual is the normed state."""

    kind: str
    numbers: dict[str, Any]
    width: int
    layers: tuple[int, ...] | None
    proposes: int
    normed: bool = False

    def states(self, layers: int) -> tuple[int, ...]:
        """Which of a target of so many layers it drafts from: what enters each, their number for what leaves the last,
        NEXT for what its own next-token layers draw from. Raises ModelError."""
        if self.kind == OWN_LAYERS:
            return (NEXT,)
        usual = (2, layers // 2, layers - 3) if self.kind == EAGLE3 else (layers,)
        found = self.layers or usual
        if not all(0 <= layer <= layers for layer in found):
            raise ModelError(f"the head drafts from the layers {list(found)} of a target that has {layers}")
        return found

    @property
    def features(self) -> int:
        """Numbers of a token's features."""
        return self.width * len(self.layers or ((0, 0, 0) if self.kind == EAGLE3 else (0,)))


def is_head(path: Path) -> bool:
    """Whether a path is a head's directory, or a file of next-token layers alone. Raises ModelError for one that cannot
    be loaded safely."""
    return _kind(check_directory(path)) is not None if path.is_dir() else stand_alone(path)


def read_head(path: Path) -> HeadConfig:
    """A head's directory or file. Raises ModelError."""
    if path.is_file():
        if (reason := why_not(path)) is not None:
            raise ModelError(f"{path}: {reason}")
        told = read_metadata(path)
        if told.width > _WIDTH:
            raise ModelError(f"{path}: states of {told.width} numbers, {_WIDTH} are the most")
        return HeadConfig(OWN_LAYERS, {"vocab_size": told.vocabulary}, told.width, None, told.vocabulary)
    config = check_directory(path)
    kind = _kind(config)
    if kind is None:
        raise ModelError(f"{path}: not a head: its architecture is none of {', '.join(_ARCHITECTURES)}")
    numbers = config.get("transformer_layer_config", config)
    if not isinstance(numbers, dict):
        raise ModelError(f"{path}: transformer_layer_config is no object")
    try:
        for name in ("hidden_size", "intermediate_size", "num_attention_heads"):
            _count(name, numbers.get(name), _WIDTH)
        for name in ("num_key_value_heads", "head_dim", "max_position_embeddings"):
            _count(name, numbers.get(name) or 1, 1 << 30)
        _count("num_hidden_layers", numbers.get("num_hidden_layers"), _LAYERS)
        width = _count("target_hidden_size", config.get("target_hidden_size") or numbers["hidden_size"], _WIDTH)
        vocabulary = _count("vocab_size", numbers.get("vocab_size"), 1 << 22)
        proposes = _count("draft_vocab_size", config.get("draft_vocab_size") or vocabulary, vocabulary)
        layers = _layers(config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: config.json: {error}") from None
    if kind == DOVETAIL and (width != numbers["hidden_size"] or len(layers or (0,)) != 1):
        raise ModelError(f"{path}: a Dovetail head drafts from one layer of its target, and is as wide")
    found = HeadConfig(kind, numbers, width, layers, proposes, bool(config.get("norm_before_residual", False)))
    if len(layers or ()) > _STATES or found.features > _FEATURES:
        raise ModelError(f"{path}: it drafts from {found.features} numbers of a token, {_FEATURES} are the most")
    return found


def _kind(config: dict[str, Any]) -> str | None:
    if config.get("speculators_model_type") == "eagle3":
        return EAGLE3
    names = config.get("architectures")
    found = names[0] if isinstance(names, list) and names else ""
    return _ARCHITECTURES.get(found) if isinstance(found, str) else None


def _layers(config: dict[str, Any]) -> tuple[int, ...] | None:
    """speculators and vLLM count the layers that states enter, SGLang (within ``eagle_config``) those they leave."""
    name, inner = "eagle_aux_hidden_state_layer_ids", config.get("eagle_config")
    if found := config.get(name):
        return tuple(_count(name, layer, _LAYERS, least=0) for layer in found)
    if isinstance(inner, dict) and (found := inner.get(name)):
        return tuple(_count(name, layer, _LAYERS, least=0) + 1 for layer in found)
    return None


def _count(name: str, value: object, most: int, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name}: {value!r:.40} is no number from {least} to {most}")
    return value
