"""A model on disk, and what must be known of it before its weights load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hetero.placement.memory import ModelShape
from hetero.workers.errors import ModelError
from hetero.workers.models.forms import GGUF, HEAD, NEXT_TOKEN, SAFETENSORS
from hetero.workers.models.gguf_header import parts
from hetero.workers.models.head import OWN_LAYERS, HeadConfig, is_head, read_head
from hetero.workers.models.metadata import Metadata, read_metadata
from hetero.workers.models.next_layers import next_layers
from hetero.workers.models.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Model:
    """A model on disk; ``shape.weights`` are bytes there."""

    name: str
    path: Path
    metadata: Metadata
    shape: ModelShape
    tokenizer: Tokenizer
    head: HeadConfig | None = None  # what it is of another model, whose tokenizer it has

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()

    @property
    def form(self) -> str:
        """What an engine must read to run it."""
        if self.head is not None:
            return NEXT_TOKEN if self.is_gguf else HEAD
        return GGUF if self.is_gguf else SAFETENSORS

    @property
    def context(self) -> int:
        """Tokens it was made for."""
        return self.metadata.context


def read_model(path: Path, name: str = "", of: Model | None = None) -> Model:
    """The model of a GGUF file or a transformers directory; ``of``: the target, where it may be a head. Raises
    ModelError, with no weights loaded."""
    head = read_head(path) if is_head(path) else None
    if head is not None and of is None:
        raise ModelError(f"{path}: this is a head, it answers nothing by itself: name it as the --draft of its target")
    metadata = read_metadata(path)
    if head is not None and head.kind == OWN_LAYERS:
        metadata = replace(metadata, layers=next_layers(path))
    tokenizer = load_tokenizer(path) if head is None or of is None else of.tokenizer
    if not any(tokenizer.vocabulary.pieces):
        raise ModelError(f"{path}: its vocabulary is empty")
    weights = sum(file.stat().st_size for file in _files(path))
    shape = _shape(weights, metadata, metadata.vocabulary or len(tokenizer.vocabulary))
    return Model(name or (path.resolve().name if path.is_dir() else path.stem), path, metadata, shape, tokenizer, head)


def vocabulary_difference(target: Model, drafter: Model) -> str:
    """How two models differ in what they mean by a token id; "" where they do not."""
    one, two = target.tokenizer.vocabulary, drafter.tokenizer.vocabulary
    common = min(len(one), len(two))
    # Control tokens have no bytes, and files differ in which tokens they mark as such.
    pairs = enumerate(zip(one.pieces[:common], two.pieces[:common], strict=True))
    differing = next((i for i, (a, b) in pairs if a != b and a and b), None)
    if differing is not None:
        return f"token {differing} is {one.pieces[differing]!r} in one and {two.pieces[differing]!r} in the other"
    # Models of a family pad their vocabularies to different sizes; only a real difference matters.
    beyond = [p for p in (*one.pieces[common:], *two.pieces[common:]) if p]
    return "" if len(beyond) <= 0.02 * common else f"{len(one)} tokens against {len(two)}"


def _files(path: Path) -> list[Path]:
    """What holds a model's weights."""
    if path.is_dir():
        return list(path.glob("*.safetensors"))
    return parts(path)


def _shape(weights: int, metadata: Metadata, vocabulary: int) -> ModelShape:
    """A llama-like model's shape; its parameters counted as such a model has them, the head untied."""
    width, head = metadata.width, metadata.head
    attention = 2 * width * head * (metadata.heads + metadata.kv_heads)
    layer = attention + 3 * width * metadata.ffn
    parameters = metadata.layers * layer + 2 * vocabulary * width
    return ModelShape(weights, parameters, metadata.layers, metadata.kv_heads, head, vocabulary)
