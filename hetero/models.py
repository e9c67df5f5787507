"""What a user may name as a model, and what must be known of it before its weights load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gguf import LlamaFileType

from hetero.errors import ModelError
from placement.memory import ModelShape
from workers.tokenizer import GgufTokenizer, Tokenizer, load_tokenizer

PAIR = Path(__file__).parent / "data" / "pair"


@dataclass(frozen=True)
class Model:
    """A model on disk; ``shape.weights`` are bytes there."""

    name: str
    path: Path
    context: int
    shape: ModelShape
    tokenizer: Tokenizer
    quantisation: str = ""

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()


def find_model(asked: str, role: str) -> Model:
    """The model a user named. ``role``: "target" or "drafter". Raises ModelError, with no weights loaded."""
    if asked == "builtin":
        return _gguf("builtin", PAIR / f"{role}.gguf")
    path = Path(asked).expanduser()
    if path.is_dir():
        return _directory(path)
    if not path.is_file():
        raise ModelError(
            f"{role} model {asked}: no such file or directory; name a GGUF file, a transformers directory or 'builtin'"
        )
    return _gguf(path.stem, path)


def check_vocabularies(target: Model, drafter: Model) -> None:
    """Raise ModelError unless both models mean the same by each token id."""
    one, two = target.tokenizer.vocabulary, drafter.tokenizer.vocabulary
    common = min(len(one), len(two))
    # Control tokens have no bytes, and files differ in which tokens they mark as such.
    pairs = enumerate(zip(one.pieces[:common], two.pieces[:common], strict=True))
    differing = next((i for i, (a, b) in pairs if a != b and a and b), None)
    # Models of a family pad their vocabularies to different sizes; only a real difference matters.
    beyond = [p for p in (*one.pieces[common:], *two.pieces[common:]) if p]
    if differing is None and len(beyond) <= 0.02 * common:
        return
    if differing is not None:
        detail = f"token {differing} is {one.pieces[differing]!r} in one and {two.pieces[differing]!r} in the other"
    else:
        detail = f"{len(one)} tokens against {len(two)}"
    raise ModelError(
        f"vocabulary mismatch between target {target.name} and drafter {drafter.name}: {detail}; "
        "take a drafter of the target's family, or --draft none"
    )


def _gguf(name: str, path: Path) -> Model:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{path}: not a GGUF file (it begins with {magic!r})")
    tokenizer = GgufTokenizer(path)
    numbers = tokenizer.numbers
    parts = [path]
    if "-of-" in path.stem:  # a split model: name-00001-of-00003.gguf
        parts = sorted(path.parent.glob(path.stem.rsplit("-", 3)[0] + "-*-of-*.gguf")) or parts
    weights = sum(part.stat().st_size for part in parts)
    shape = _shape(weights, numbers, len(tokenizer.vocabulary))
    kind = tokenizer.meta("general.file_type") or ""
    known = {str(int(each)): each.name for each in LlamaFileType}
    return Model(name, path, numbers["context_length"], shape, tokenizer, _plain(known.get(kind, "GGUF")))


def _plain(kind: str) -> str:
    """llama.cpp's name of a file's type as people write it: Q4_K_M, F16."""
    return kind.removeprefix("MOSTLY_").removeprefix("ALL_")


def _directory(path: Path) -> Model:
    from workers.engines.checkpoint import check_directory

    config = check_directory(path)
    config = {**config, **(config.get("text_config") or {})}
    tokenizer = load_tokenizer(path)

    def number(key: str, default: int) -> int:
        value = config.get(key)
        return value if isinstance(value, int) and value > 0 else default

    heads = number("num_attention_heads", 1)
    width = number("hidden_size", heads)
    numbers = {
        "block_count": number("num_hidden_layers", 1),
        "embedding_length": width,
        "feed_forward_length": number("intermediate_size", 4 * width),
        "head_count": heads,
        "head_count_kv": number("num_key_value_heads", heads),
        "key_length": number("head_dim", width // heads),
    }
    weights = sum(part.stat().st_size for part in path.glob("*.safetensors"))
    shape = _shape(weights, numbers, number("vocab_size", len(tokenizer.vocabulary)))
    kind = str(config.get("dtype") or config.get("torch_dtype") or "safetensors")
    return Model(path.resolve().name, path, number("max_position_embeddings", 2048), shape, tokenizer, kind)


def _shape(weights: int, numbers: dict[str, int], vocabulary: int) -> ModelShape:
    """A llama-like model's shape; its parameters counted as such a model has them, the head untied."""
    width, head = numbers["embedding_length"], numbers["key_length"]
    attention = 2 * width * head * (numbers["head_count"] + numbers["head_count_kv"])
    layer = attention + 3 * width * numbers["feed_forward_length"]
    parameters = numbers["block_count"] * layer + 2 * vocabulary * width
    return ModelShape(weights, parameters, numbers["block_count"], numbers["head_count_kv"], head, vocabulary)
