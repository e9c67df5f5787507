"""A model's numbers, read from a GGUF file's header or a transformers directory's config: the one reader of both.
Weights are not touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from hetero.workers.errors import ModelError
from hetero.workers.models.directory import check_directory
from hetero.workers.models.gguf_header import read_header

_LARGEST_REAL = 1e15
_LARGEST = 1 << 31  # of a number that counts something: more is a damaged file


@dataclass(frozen=True)
class Metadata:
    """What a model's shape is made of. Numbers count; ``layers`` without next-token ones; ``context`` in tokens;
    ``head`` is the size of one head.

    ``epsilon`` of its RMS norms; ``theta`` the base of its rotary frequencies, ``scaling`` how those are stretched ("":
    not at all); ``window``: tokens its attention looks back (0: all); ``quantisation`` as people write it: Q4_K_M, F16.
    """

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    ffn: int
    context: int
    vocabulary: int = 0  # 0: not told
    epsilon: float = 1e-6
    theta: float = 10000.0
    scaling: str = ""
    experts: int = 0
    window: int = 0
    quantisation: str = ""
    missing: tuple[str, ...] = ()  # numbers the file does not tell, and that were guessed


def read_metadata(path: Path) -> Metadata:
    """The numbers of a GGUF file or a transformers directory. Raises ModelError."""
    return _of_config(path) if path.is_dir() else _of_header(path)


def _of_header(path: Path) -> Metadata:
    header = read_header(path)
    family = str(header.get("general.architecture", ""))
    numbers = Fields({key.removeprefix(f"{family}."): value for key, value in header.items()})
    heads = numbers.count("attention.head_count", 1, must=True)
    width = numbers.count("embedding_length", heads, must=True)
    scaling = str(header.get(f"{family}.rope.scaling.type", "none"))
    return Metadata(
        family=family,
        layers=max(1, numbers.count("block_count", 1, must=True) - numbers.count("nextn_predict_layers", 0)),
        width=width,
        heads=heads,
        kv_heads=numbers.count("attention.head_count_kv", heads),
        head=numbers.count("attention.key_length", max(1, width // heads)),
        ffn=numbers.count("feed_forward_length", 4 * width, must=True),
        context=numbers.count("context_length", 2048),
        vocabulary=numbers.count("vocab_size", numbers.count("tokenizer.ggml.tokens", 0)),
        epsilon=numbers.real("attention.layer_norm_rms_epsilon", 1e-6, must=True),
        theta=numbers.real("rope.freq_base", 10000.0),
        scaling="" if scaling == "none" else scaling,
        experts=numbers.count("expert_count", 0),
        window=numbers.count("attention.sliding_window", 0),
        quantisation=_file_type(header.get("general.file_type")),
        missing=tuple(numbers.missing),
    )


def _file_type(number: Any) -> str:
    """llama.cpp's name of a file's type as people write it."""
    kind = next((each.name for each in LlamaFileType if each == number), "GGUF")
    return kind.removeprefix("MOSTLY_").removeprefix("ALL_")


def _of_config(path: Path) -> Metadata:
    config = check_directory(path)
    config = {**config, **_mapping(config, "text_config"), **_mapping(config, "transformer_layer_config")}
    numbers = Fields(config)
    heads = numbers.count("num_attention_heads", 1, must=True)
    width = numbers.count("hidden_size", heads, must=True)
    rope = _mapping(config, "rope_parameters") or _mapping(config, "rope_scaling")
    scaling = str(rope.get("rope_type", rope.get("type", "default")))
    return Metadata(
        family=str(config.get("model_type", "")),
        layers=numbers.count("num_hidden_layers", 1, must=True),
        width=width,
        heads=heads,
        kv_heads=numbers.count("num_key_value_heads", heads),
        head=numbers.count("head_dim", max(1, width // heads)),
        ffn=numbers.count("intermediate_size", 4 * width, must=True),
        context=numbers.count("max_position_embeddings", 2048),
        vocabulary=numbers.count("vocab_size", 0, must=True),
        epsilon=numbers.real("rms_norm_eps", 1e-6),
        theta=Fields(rope).real("rope_theta", numbers.real("rope_theta", 10000.0)),
        scaling="" if scaling == "default" else scaling,
        experts=numbers.count("num_local_experts", numbers.count("num_experts", 0)),
        window=numbers.count("sliding_window", 0) if config.get("use_sliding_window", True) else 0,
        quantisation=str(config.get("dtype") or config.get("torch_dtype") or "safetensors")[:40],
        missing=tuple(numbers.missing),
    )


def _mapping(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A part of a config; {} where it has none. Raises ModelError."""
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise ModelError(f"config.json: {key}: {found!r:.100} is not an object")
    return found


class Fields:
    """Values by key, of which only sensible ones count; ``missing`` tells of the others that matter."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.missing: list[str] = []
        self._values = values

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it is."""
        return self._values.get(key, default)

    def count(self, key: str, default: int, must: bool = False) -> int:
        """A whole number above zero. ``must``: a model of its kind has it."""
        value = self._values.get(key)
        if isinstance(value, list):  # one for each layer: the most any needs
            value = max((each for each in value if type(each) is int), default=None)
        if type(value) is int and 0 < value < _LARGEST:
            return value
        self.missing += [key] * must
        return default

    def real(self, key: str, default: float, must: bool = False) -> float:
        """A number above zero, likewise; a value that is none is missing even where it need not be."""
        value = self._values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _LARGEST_REAL:
            return float(value)
        self.missing += [key] * (must or value is not None)
        return default
