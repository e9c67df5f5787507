"""What a model of a family computes, in the kernel's terms, from a GGUF file's header or a transformers config.

The families: llama and mistral (mixtral among them), qwen2, qwen3, smollm3, granite, phi3, gemma2, gemma3; from GGUF
files qwen2moe, qwen3moe, gpt-oss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetero.workers.engines.octet.rotation import KINDS, Rope
from hetero.workers.errors import ModelError, Unsupported
from hetero.workers.models.directory import check_directory
from hetero.workers.models.gguf_header import read_header
from hetero.workers.models.metadata import Fields, Metadata, read_metadata

NO_ROTATION = -1  # as in the kernel's types.h
SILU, GELU, SWIGLU_OAI = 0, 1, 2
_ALIKE = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "phi3")
_MIXED = ("qwen2moe", "qwen3moe", "gpt-oss")
FAMILIES = (*_ALIKE, "gemma2", "gemma3", *_MIXED)
_SIDE_BY_SIDE = ("llama", "mistral", "smollm3", "granite")  # how GGUF files of these have their rotary pairs
_LARGEST_SCALE = 1e6
_MOST_EXPERTS = _MOST_LAYERS = 4096


@dataclass(frozen=True)
class Experts:
    """A mixture: each row goes to ``used`` of ``count``. ``late``: the softmax is over those alone; ``rescaled``: their
    weights sum to one; ``shared_ffn``: of the one that sees all rows (0: none)."""

    count: int
    used: int
    ffn: int
    shared_ffn: int = 0
    late: bool = False
    rescaled: bool = True


@dataclass(frozen=True)
class Architecture:
    """A model's shape and constants. ``neox``: rotary pairs lie half a head apart, not side by side; ``rotations``: by
    layer, which of ``ropes``, or NO_ROTATION; ``windows``: by layer, positions it looks back (0: all); ``one_more``:
    norms are 1 + what the file has; ``attention_cap``, ``logit_cap``: soft caps (0: none)."""

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    ffn: int
    context: int
    epsilon: float
    neox: bool
    ropes: tuple[Rope, ...]
    rotations: tuple[int, ...]
    windows: tuple[int, ...]
    activation: int = SILU
    embedding_scale: float = 1.0
    attention_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    one_more: bool = False
    experts: Experts | None = None
    ffn_norm: str = "ffn_norm"  # its name in the file
    post_norms: bool = False  # of what is added to the residual


def read_architecture(path: Path) -> Architecture:
    """Raises ModelError or Unsupported."""
    found = read_metadata(path)
    family = found.family.removesuffix("_text")
    if family not in FAMILIES:
        raise Unsupported(f"octet runs {', '.join(FAMILIES)} models; {path.name} is of the {found.family} family")
    if found.missing:
        raise ModelError(f"{path.name}: the file does not tell {', '.join(found.missing)}")
    if (found.experts or family in _MIXED) and path.is_dir():
        raise Unsupported(f"octet runs mixtures of experts from GGUF files; {path.name} is a directory")
    if found.heads % found.kv_heads:
        raise ModelError(f"{path.name}: {found.heads} heads cannot share {found.kv_heads} heads of keys and values")
    if found.layers > _MOST_LAYERS:
        raise ModelError(f"{path.name}: {found.layers} layers cannot be")
    told = _of_config(path, found) if path.is_dir() else _of_header(path, found)
    rope, scales = told
    _check_rope(path, rope)
    windows, rotations, ropes = [found.window] * found.layers, [0] * found.layers, [rope]
    more: dict[str, Any] = {}
    if family == "smollm3":  # NoPE: every fourth layer knows no positions
        rotations = [NO_ROTATION if (n + 1) % 4 == 0 else 0 for n in range(found.layers)]
    if family.startswith("gemma"):
        period = 2 if family == "gemma2" else 6  # all layers but the last of a period look back as far as the window
        local = [(n + 1) % period != 0 for n in range(found.layers)]
        windows = [found.window if is_local else 0 for is_local in local]
        more = {"activation": GELU, "embedding_scale": math.sqrt(found.width), "one_more": path.is_dir()}
        if family == "gemma3":
            ropes.append(Rope(scales.pop("local_theta", 10000.0), rope.rotated))
            rotations = [1 if is_local else 0 for is_local in local]
        more["post_norms"] = True
    if family == "gpt-oss":
        windows = [found.window if n % 2 == 0 else 0 for n in range(found.layers)]
        more = {"activation": SWIGLU_OAI, "ffn_norm": "post_attention_norm"}
    scales.pop("local_theta", None)
    if not path.is_dir() and (found.experts or family in _MIXED):
        more["experts"] = _experts(path, family, found)
    return Architecture(
        family, found.layers, found.width, found.heads, found.kv_heads, found.head, found.ffn, found.context,
        found.epsilon, path.is_dir() or family not in _SIDE_BY_SIDE, tuple(ropes), tuple(rotations), tuple(windows),
        **{"attention_scale": found.head**-0.5, **more, **scales},
    )  # fmt: skip


def _experts(path: Path, family: str, found: Metadata) -> Experts:
    fields = Fields({key.removeprefix(f"{found.family}."): value for key, value in read_header(path).items()})
    used = fields.count("expert_used_count", 1, must=True)
    ffn = fields.count("expert_feed_forward_length", found.ffn)
    shared = fields.count("expert_shared_feed_forward_length", found.ffn) if family == "qwen2moe" else 0
    if fields.missing or not 0 < used <= found.experts <= _MOST_EXPERTS:
        raise ModelError(f"{path.name}: {used} of {found.experts} experts cannot be")
    return Experts(found.experts, used, ffn, shared, family == "gpt-oss", family != "qwen2moe")


def _of_header(path: Path, found: Metadata) -> tuple[Rope, dict[str, float]]:
    """Of a GGUF file; factors of rotary pairs are a tensor there."""
    header, family = read_header(path), found.family
    fields = Fields({key.removeprefix(f"{family}."): value for key, value in header.items()})
    kind = found.scaling
    rope = Rope(
        found.theta, _rotated(path, fields.count("rope.dimension_count", found.head), found), _kind(path, kind),
        fields.real("rope.scaling.factor", 1.0), fields.count("rope.scaling.original_context_length", found.context),
        fields.real("rope.scaling.attn_factor", 0.0), fields.real("rope.scaling.yarn_beta_slow", 1.0),
        fields.real("rope.scaling.yarn_beta_fast", 32.0), family != "gpt-oss",
    )  # fmt: skip
    scales: dict[str, float] = {}
    if family == "granite":
        scales = _granite(fields, "attention.scale", "embedding_scale", "residual_scale", "logit_scale", found)
    if family == "gemma2":
        scales["attention_cap"] = fields.real("attn_logit_softcapping", 50.0)
        scales["logit_cap"] = fields.real("final_logit_softcapping", 30.0)
    if family == "gemma3":
        scales["local_theta"] = fields.real("rope.freq_base_swa", 10000.0)
    if family.startswith("gemma") and found.layers in (46, 62):  # the two of 27B, whose files do not tell
        scales["attention_scale"] = (found.width / found.heads) ** -0.5
    return rope, _bounded(path, scales, fields)


def _of_config(path: Path, found: Metadata) -> tuple[Rope, dict[str, float]]:
    config = check_directory(path)
    text = config.get("text_config")
    config = {**config, **(text if isinstance(text, dict) else {})}
    fields = Fields(config)
    told = config.get("rope_parameters") or config.get("rope_scaling") or {}
    local = told.get("sliding_attention") if isinstance(told, dict) else None
    if isinstance(told, dict) and isinstance(told.get("full_attention"), dict):  # gemma3: one for each kind of layer
        told = told["full_attention"]
    rules = Fields(told if isinstance(told, dict) else {})
    kind = _kind(path, str(rules.get("rope_type", rules.get("type", "")) or "").replace("default", ""))
    original = rules.count(
        "original_max_position_embeddings", fields.count("original_max_position_embeddings", found.context)
    )
    factor = rules.real("factor", found.context / original if kind == "longrope" else 1.0)
    share = fields.real("partial_rotary_factor", rules.real("partial_rotary_factor", 1.0))
    betas = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ("beta_slow", "beta_fast")
    rope = Rope(
        rules.real("rope_theta", found.theta),
        _rotated(path, int(found.head * share), found),
        kind, factor, original, rules.real("attention_factor", 0.0), rules.real(betas[0], 1.0),
        rules.real(betas[1], 4.0 if kind == "llama3" else 32.0), rules.get("truncate") is not False,
        _factors(path, rules, "short_factor"), _factors(path, rules, "long_factor"),
    )  # fmt: skip
    scales: dict[str, float] = {}
    if found.family == "granite":
        scales = _granite(
            fields, "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling", found
        )
    if found.family.startswith("gemma"):
        scales["attention_scale"] = fields.real("query_pre_attn_scalar", float(found.head)) ** -0.5
    if found.family.startswith("gemma2"):
        scales["attention_cap"] = fields.real("attn_logit_softcapping", 0.0)
        scales["logit_cap"] = fields.real("final_logit_softcapping", 0.0)
    if found.family.startswith("gemma3"):
        own = Fields(local if isinstance(local, dict) else {})
        scales["local_theta"] = own.real("rope_theta", fields.real("rope_local_base_freq", 10000.0))
    return rope, _bounded(path, scales, fields)


def _granite(
    fields: Fields, attention: str, embedding: str, residual: str, logits: str, found: Metadata
) -> dict[str, float]:
    return {
        "attention_scale": fields.real(attention, found.head**-0.5),
        "embedding_scale": fields.real(embedding, 1.0),
        "residual_scale": fields.real(residual, 1.0),
        "logit_scale": 1.0 / fields.real(logits, 1.0),
    }


def _bounded(path: Path, scales: dict[str, float], fields: Fields) -> dict[str, float]:
    if fields.missing or any(
        not 1 / _LARGEST_SCALE < abs(v) < _LARGEST_SCALE for k, v in scales.items() if v and k != "local_theta"
    ):
        raise ModelError(f"{path.name}: its scales are none: {fields.missing or scales}")
    return scales


def _kind(path: Path, kind: str) -> str:
    if kind not in KINDS:
        raise Unsupported(f"octet does not run {path.name}: its rotary scaling {kind!r:.40} is not covered")
    return kind


def _rotated(path: Path, count: int, found: Metadata) -> int:
    if not 0 < count <= found.head or count % 2:
        raise ModelError(f"{path.name}: {count} numbers of a head of {found.head} cannot be turned in pairs")
    return count


def _check_rope(path: Path, rope: Rope) -> None:
    """Raises ModelError for numbers of which no frequencies can be made."""
    pairs = rope.rotated // 2
    if rope.theta <= 1 or (rope.kind in ("yarn", "longrope") and rope.original <= 1):
        raise ModelError(f"{path.name}: rotary base {rope.theta} and original context {rope.original} cannot be")
    if rope.kind == "llama3" and rope.low >= rope.high:
        raise ModelError(f"{path.name}: low_freq_factor {rope.low} is not below high_freq_factor {rope.high}")
    if any(factors and len(factors) != pairs for factors in (rope.short, rope.long)):
        raise ModelError(f"{path.name}: a head of {rope.rotated} rotated numbers has {pairs} rotary factors")


def _factors(path: Path, rules: Fields, key: str) -> tuple[float, ...]:
    value = rules.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(v, int | float) and 0 < v < _LARGEST_SCALE for v in value):
        raise ModelError(f"{path.name}: {key}: these are no factors")
    return tuple(float(v) for v in value)
