"""The engines there are, one entry each: what they run, what they take, why one cannot run here, how to load it.

Nothing else compares engine names. An entry imports its library when it is asked to load or to look, so that the
registry can be read where a library is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hetero.placement.errors import ConfigError
from hetero.placement.memory import F16, Q8_0, KvCache, ModelShape
from hetero.workers.models.forms import GGUF, HEAD, HEADS, NEXT_TOKEN, SAFETENSORS
from hetero.workers.models.head import NEXT
from hetero.workers.models.metadata import Metadata
from hetero.workers.models.next_layers import FAMILIES

if TYPE_CHECKING:
    from hetero.workers.engines.base import Engine
    from hetero.workers.engines.torch.engine import TorchSettings

_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of torch's numbers


Progress: TypeAlias = Callable[[float], None]  # is told the share of a model that is loaded


def unheard(share: float) -> None:
    """For whom it is nothing."""


@dataclass(frozen=True)
class EngineSettings:
    """What to load, and how. ``gpu``: the kind of the ``gpus`` GPUs the process sees, or "" for the CPU, which holds
    the layers beyond ``gpu_layers`` (-1: none); ``draft_nodes``: evaluated draft tokens a sequence may hold; ``dtype``
    and ``graphs`` (on CUDA) are torch's; ``weights`` (what becomes of 16-bit floats) is octet's; ``group``: layers
    whose attentions run at once for guesses; ``ranks``: processes, each on its share of ``cores`` or a GPU, that share
    the model, within its layers (``tensor``) or layer by layer; ``kv_cache``: how the numbers of the cache are kept;
    ``features``: layers whose input is handed out; ``learns``: it can be taught while it serves; ``target``: whose head
    it is."""

    path: Path
    threads: int = 1
    sequences: int = 4
    context: int = 2048
    exact: bool = False
    gpu: str = ""
    gpus: int = 1
    gpu_layers: int = -1
    draft_nodes: int = 128
    dtype: str = "float32"
    graphs: bool = True
    weights: str = "as-is"
    kv_cache: KvCache = F16
    group: int = 1
    features: tuple[int, ...] = ()
    learns: bool = False
    target: Path | None = None
    ranks: int = 1
    cores: tuple[int, ...] = ()
    tensor: bool = True
    progress: Progress = unheard


@dataclass(frozen=True)
class EngineEntry:
    """One engine.

    ``formats`` of model files it reads; ``why_not(kind)``: why it cannot run on a kind of device of this machine, None
    when it can; ``weight_bytes(shape, dtype)``: what a model's weights take in memory; ``kv_width(dtype, kept)``: bytes
    of a number in its KV cache; ``kv_caches``: how it can keep those; ``always_exact``: a row's bits do not depend on
    what shares its forward; ``gpus``: whether any GPU will do; ``splits``: whether one may
    hold some of the layers, and the CPU the rest; ``layer_parallel``: whether guesses may run layers in parallel;
    ``hands_out(model, layers)``: whether it can hand out what enters these layers (their number: what leaves the last;
    NEXT: what next-token layers draw from); ``learns``: whether it can be taught while it serves.
    """

    name: str
    summary: str
    formats: tuple[str, ...]
    load: Callable[[EngineSettings], Engine]
    why_not: Callable[[str], str | None]
    weight_bytes: Callable[[ModelShape, str], int]
    kv_width: Callable[[str, str], float]
    kv_caches: tuple[KvCache, ...] = (F16, Q8_0)
    kv_scale: int = 16  # numbers of a head that a scale is for, where they are bytes
    always_exact: bool = False
    gpus: bool = True
    splits: bool = False
    layer_parallel: bool = False
    hands_out: Callable[[Metadata, Sequence[int]], bool] = lambda model, layers: not layers
    learns: bool = False
    package: str = ""  # the import it needs, and
    extra: str = ""  # what of hetero brings it
    variant: Callable[[], str] = lambda: ""  # which of its kinds this machine gets
    repair: Callable[[], str] = lambda: "take another engine"  # what to do where it dies of an instruction

    @property
    def drafts_from_states(self) -> bool:
        """Whether it runs heads."""
        return any(form in HEADS for form in self.formats)

    def objection(self, kind: str, here: bool) -> str | None:
        """Why the engine cannot run on a kind of device; of another machine (not ``here``) only what is always so."""
        if kind != "cpu" and not self.gpus:
            return f"{self.name} runs on CPUs only; use llama_cpp or torch"
        if not here:
            return None
        if self.package and find_spec(self.package) is None:
            return f"{self.name} needs the package {self.package}: pip install 'hetero[{self.extra}]'"
        return self.why_not(kind)


def _load_llama(settings: EngineSettings, next_token: bool = False) -> Engine:
    from hetero.workers.engines.llama_cpp.engine import LlamaSettings, load_llama

    own = LlamaSettings(
        settings.threads,
        settings.sequences,
        settings.context,
        exact=settings.exact,
        draft_nodes=settings.draft_nodes,
        gpu=settings.gpu,
        gpus=settings.gpus,
        gpu_layers=settings.gpu_layers,
        kv_cache=settings.kv_cache,
        features=settings.features,
    )
    if next_token:
        from hetero.workers.engines.llama_cpp.next_token import NextTokenEngine

        return NextTokenEngine(settings.path, own)
    return load_llama(settings.path, own)


def _load_next_token(settings: EngineSettings) -> Engine:
    return _load_llama(settings, next_token=True)


def _no_llama(kind: str) -> str | None:
    from hetero.workers.engines.accelerators import install_line, llama_kinds

    if kind == "cpu" or kind in llama_kinds():
        return None
    return f"llama-cpp-python was built without {kind}: use torch, or reinstall it: {install_line(kind)}"


def _repair_llama() -> str:
    from hetero.workers.engines.accelerators import install_line

    return install_line("cpu")


def _load_torch(settings: EngineSettings) -> Engine:
    from hetero.workers.engines.torch.engine import TorchEngine
    from hetero.workers.engines.torch.graphs import CudaGraphs

    own = _torch_settings(settings)
    if settings.ranks > 1:
        from hetero.workers.engines.torch.team import TeamEngine

        return TeamEngine(settings.path, own, settings.ranks, settings.tensor, settings.cores)
    return TorchEngine(settings.path, own, CudaGraphs() if settings.graphs and own.device == "cuda:0" else None)


def _load_head(settings: EngineSettings) -> Engine:
    from hetero.workers.engines.torch.head_engine import HeadEngine
    from hetero.workers.errors import ModelError

    if settings.target is None:
        raise ModelError(f"{settings.path}: a head needs to be told its target")
    return HeadEngine(settings.path, settings.target, _torch_settings(settings))


def _torch_settings(settings: EngineSettings) -> TorchSettings:
    """As torch has them; its threads are set."""
    import torch

    from hetero.workers.engines.torch.engine import TorchSettings

    torch.set_num_threads(settings.threads)
    return TorchSettings(
        # The process sees its own GPUs only (``runtime.pinning``); torch calls ROCm's cuda, too.
        {"": "cpu", "mps": "mps"}.get(settings.gpu, "cuda:0"),
        settings.dtype,
        settings.sequences,
        settings.context,
        exact=settings.exact,
        draft_nodes=settings.draft_nodes,
        group=settings.group,
        features=settings.features,
        learns=settings.learns,
    )


def _no_torch(kind: str) -> str | None:
    from hetero.workers.engines.accelerators import torch_kinds

    if kind == "cpu" or kind in torch_kinds():
        return None
    return (
        f"the installed torch cannot use {kind} (hetero doctor names the one that can); "
        "GGUF models run on it with llama_cpp"
    )


def _load_octet(settings: EngineSettings) -> Engine:
    from hetero.workers.engines.octet.engine import OctetEngine, OctetSettings

    own = OctetSettings(
        settings.threads,
        settings.sequences,
        settings.context,
        weights=settings.weights,
        draft_nodes=settings.draft_nodes,
        kv_cache=settings.kv_cache,
        features=settings.features,
    )
    return OctetEngine(settings.path, own, settings.progress)


def _octet_path() -> str:
    from hetero.workers.engines.octet.library import path

    return path()[1]


def _no_octet(kind: str) -> str | None:
    from hetero.workers.engines.octet.library import why_not

    reason = why_not()
    return None if reason is None else f"{reason}; use llama_cpp or torch"


def _by_layers(model: Metadata, layers: Sequence[int]) -> bool:
    return NEXT not in layers


# Architectures of which the pinned llama.cpp's graphs name what enters their layers.
_NAMED = frozenset(
    {
        "gemma4", "gpt-oss", "lfm2", "llama", "minimax-m2", "qwen3", "qwen35", "qwen35moe", "qwen3moe", "qwen3next",
    }
)  # fmt: skip


def _llama_hands_out(model: Metadata, layers: Sequence[int]) -> bool:
    """(What leaves the last layer has no name in its graphs.)"""
    return all(model.family in (FAMILIES if at == NEXT else _NAMED) and at < model.layers for at in layers)


_ENTRIES = (
    EngineEntry(
        name="llama_cpp",
        summary="GGUF files, on CPUs and on any GPU that llama-cpp-python was built for",
        formats=(GGUF,),
        load=_load_llama,
        why_not=_no_llama,
        weight_bytes=lambda shape, dtype: shape.weights,
        kv_width=lambda dtype, kept: 2 if kept == F16 else 34 / 32,  # a scale for 32
        splits=True,
        kv_scale=32,
        hands_out=_llama_hands_out,
        package="llama_cpp",
        extra="llama",
        repair=_repair_llama,
    ),
    EngineEntry(
        name="torch",
        summary="safetensors directories and GGUF files, on CPUs, CUDA, ROCm and MPS",
        formats=(SAFETENSORS, GGUF),
        load=_load_torch,
        why_not=_no_torch,
        weight_bytes=lambda shape, dtype: shape.parameters * _WIDTHS[dtype],  # GGUF, too, is unpacked
        kv_width=lambda dtype, kept: _WIDTHS[dtype],
        kv_caches=(F16,),
        layer_parallel=True,
        hands_out=_by_layers,
        learns=True,
        package="torch",
        extra="torch",
    ),
    EngineEntry(
        name="octet",
        summary="llama-like models with the file's own weights, on CPUs with AVX2, AVX512-VNNI or Arm's dot products",
        formats=(GGUF, SAFETENSORS),
        load=_load_octet,
        why_not=_no_octet,
        # Repacked, k-quants grow by a tenth at most; 16-bit floats become int8 with a scale for 32.
        weight_bytes=lambda shape, dtype: min(shape.weights * 11 // 10, shape.parameters * 10 // 8),
        kv_width=lambda dtype, kept: 2 if kept == F16 else 18 / 16,  # a scale for 16
        always_exact=True,
        gpus=False,
        hands_out=_by_layers,
        variant=_octet_path,
    ),
    EngineEntry(
        name="head",
        summary="heads that draft from the target's hidden states (EAGLE-3, Dovetail), where torch runs",
        formats=(HEAD,),
        load=_load_head,
        why_not=_no_torch,
        weight_bytes=lambda shape, dtype: shape.parameters * _WIDTHS[dtype],
        kv_width=lambda dtype, kept: _WIDTHS[dtype],
        kv_caches=(F16,),
        package="torch",
        extra="torch",
    ),
    EngineEntry(
        name="next_token",
        summary="a model's own next-token layers (MTP), which draft from its states, where llama_cpp runs",
        formats=(NEXT_TOKEN,),
        load=_load_next_token,
        why_not=_no_llama,
        weight_bytes=lambda shape, dtype: shape.weights,
        kv_width=lambda dtype, kept: 2 if kept == F16 else 34 / 32,
        kv_scale=32,
        package="llama_cpp",
        extra="llama",
        repair=_repair_llama,
    ),
)
ENGINES = {entry.name: entry for entry in _ENTRIES}


def find_engine(name: str, field: str = "engine") -> EngineEntry:
    """The entry of a name; ``field``: the setting that named it. Raises ConfigError."""
    entry = ENGINES.get(name)
    if entry is None:
        raise ConfigError(f"{field}: {name!r} is unknown: choose {', '.join(ENGINES)}")
    return entry


def _reading(form: str) -> list[EngineEntry]:
    return [entry for entry in ENGINES.values() if form in entry.formats]


def handing_out(form: str, model: Metadata, states: Sequence[int]) -> list[EngineEntry]:
    """The engines of a format that hand out these states of a model."""
    return [entry for entry in _reading(form) if entry.hands_out(model, states)]


def default_engine(form: str, kind: str, model: Metadata | None = None, states: Sequence[int] = ()) -> EngineEntry:
    """The engine of a format on a kind of device: the first that can run there, else the first that reads it; of those
    that hand out these ``states`` of a model (of all, where none does)."""
    reading = (handing_out(form, model, states) if model is not None else []) or _reading(form)
    return next((entry for entry in reading if entry.objection(kind, here=True) is None), reading[0])


def torch_dtype(kind: str, exact: bool) -> str:
    """What the torch engine computes in on a kind of device."""
    return "float32" if kind == "cpu" or exact else "float16" if kind == "mps" else "bfloat16"
