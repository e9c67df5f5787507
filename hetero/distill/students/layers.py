"""The model that is to draft: some of the target's layers, and the tokens it uses.

Either layers spread over the target's learn to do without the others, or the target's first layers stay as they are and
its last few learn to go on from there (Kangaroo, Liu et al. 2024: an early exit with an adapter): what is learned is
small then, what is read is not. Layers and embeddings are the target's own to begin with (FastDraft, Zafrir et al.
2024, begins from scratch, and needs billions of tokens for it).
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from hetero.distill.students.student import Cut, Source, Words
from hetero.errors import ConfigError, ModelError
from hetero.workers.engines.torch.checkpoint import load_model
from hetero.workers.models.adapter import write_adapter
from hetero.workers.models.gguf_writing import Matrix, Tensor, as_it_is, header_of, write_gguf
from hetero.workers.models.tokenizer import load_tokenizer
from hetero.workers.models.translation import translation
from hetero.workers.models.trimming import trimmed_header

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_VOCABULARY = ("embed_tokens.weight", "lm_head.weight")
# transformers' names of families whose GGUF tensors are transformers' own but for their names, and whether the rows of
# queries and keys are in another order there.
FAMILIES = {"llama": True, "mistral": True, "qwen2": False, "qwen3": False}


def spread(layers: int, count: int) -> list[int]:
    """``count`` of a target's layers, the first and the last among them, evenly spread between. Raises ConfigError."""
    if not 0 < count < layers:
        raise ConfigError(f"layers: {count} is no number from 1 to {layers - 1}: the target has {layers}")
    return sorted({round(n * (layers - 1) / max(1, count - 1)) for n in range(count)})


def last(layers: int, count: int, first: int) -> list[int]:
    """The last ``count`` of a target's layers, to stand behind its ``first``. Raises ConfigError."""
    if not 0 < count < layers:
        raise ConfigError(f"layers: {count} is no number from 1 to {layers - 1}: the target has {layers}")
    if not 0 < first <= layers - count:
        raise ConfigError(
            f"exit: {first} is no number from 1 to {layers - count}: {count} of {layers} layers follow it"
        )
    return list(range(layers - count, layers))


def make_student(target: Path, taken: Sequence[int], kept: Sequence[int] | None) -> Any:
    """A transformers model of those ``taken`` of the target's layers and (None: all) ``kept`` tokens, with the target's
    weights. Raises ModelError."""
    teacher = load_model(target, "float32", attention="sdpa")
    config = copy.deepcopy(teacher.config)
    whole = config.num_hidden_layers
    place = {old: new for new, old in enumerate(taken)}
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == whole:  # one for each layer
            setattr(config, name, [value[n] for n in taken])
    config.num_hidden_layers = len(taken)
    rows = torch.tensor(kept) if kept is not None else torch.arange(config.vocab_size)
    config.vocab_size = len(rows)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    state = {}
    for name, tensor in teacher.state_dict().items():
        found = _LAYER.search(name)
        if found is not None:
            old = int(found[1])
            if old in place:
                state[_LAYER.sub(f".layers.{place[old]}.", name)] = tensor.clone()
        else:
            state[name] = tensor[rows].clone() if name.endswith(_VOCABULARY) else tensor.clone()
    del teacher
    student = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    missing, unexpected = student.load_state_dict(state, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise ModelError(f"{target}: its layers are named otherwise than expected: {(missing + unexpected)[:3]}")
    student.tie_weights()
    return student


class Trunk:
    """A target's first layers: what a student goes on from."""

    def __init__(self, target: Path, first: int, kept: Sequence[int]) -> None:
        """``kept``: of each of the student's tokens the target's. Raises ModelError."""
        model = load_model(target, "float32", attention="sdpa").model
        model.layers, model.norm = model.layers[:first], torch.nn.Identity()
        self.width: int = model.config.hidden_size
        self.said = f"the first {first} layers"
        self._model, self._kept = model.eval(), np.asarray(kept, np.int64)

    def states(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float16]:
        """What leaves the last of the layers."""
        with torch.no_grad():
            ids = torch.from_numpy(self._kept[np.asarray(tokens)])[None]
            found: NDArray[np.float16] = self._model(ids, use_cache=False).last_hidden_state[0].half().numpy()
        return found


class Layers:
    """A student of some of the target's layers, ``taken``, behind its ``first`` as they are (0: none)."""

    def __init__(self, target: Path, taken: Sequence[int], kept: Sequence[int], first: int, kind: str) -> None:
        """``kept``: tokens that stay; ``kind`` of the file's numbers. Raises ModelError."""
        self._target, self._taken, self._kept, self._first, self._kind = target, list(taken), list(kept), first, kind
        self.model = make_student(target, taken, kept)
        self.words = self._words()
        self.source: Source | None = None
        if first:
            self.source = Trunk(target, first, kept)
            # The rows of its tokens stay: the first layers, too, read the target's.
            self.model.get_input_embeddings().weight.requires_grad_(False)

    def say(self, model: Any, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        own = {"inputs_embeds": given["states"]} if self._first else {"input_ids": given["tokens"]}
        logits: torch.Tensor = model(**own, use_cache=False).logits
        return logits.flatten(0, 1)[None]

    def facts(self) -> list[tuple[str, str]]:
        return [
            ("layers of the target's that learned", ", ".join(map(str, self._taken))),
            ("layers before them, as they are in the target", str(self._first)),
        ]

    def write(self, out: Path) -> Path:
        file = out / "drafter.gguf"
        part = file.with_suffix(".part")
        write_student(self.model, self._target, self._kept, self._kind, part, self._first)
        part.rename(file)
        if self._first:
            write_adapter(file, self._target, self._kept, self._first, part)
            part.rename(out / "adapter.gguf")
        return file

    def _words(self) -> Words:
        vocabulary = load_tokenizer(self._target).vocabulary
        if len(self._kept) == len(vocabulary):
            return Cut.to(self._kept, len(vocabulary))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "vocabulary.gguf"
            write_student(self.model, self._target, self._kept, "q8_0", file)
            return translation(vocabulary, load_tokenizer(file).vocabulary)


def write_student(student: Any, target: Path, kept: Sequence[int], kind: str, file: Path, first: int = 0) -> None:
    """The student as a GGUF file with the header of the target's, behind the target's ``first`` layers as they are.
    Raises ModelError."""
    config = student.config
    if config.model_type not in FAMILIES:
        raise ModelError(f"a {config.model_type} model cannot be written as GGUF here: {', '.join(FAMILIES)} can")
    reader = gguf.GGUFReader(target)
    header = header_of(reader)
    family = header["general.architecture"]
    changed = {
        f"{family}.block_count": first + config.num_hidden_layers,
        "general.name": f"drafter of {header.get('general.name', target.stem)}",
        "general.basename": "drafter",
        "general.size_label": f"{sum(p.numel() for p in student.parameters()) / 1e6:.0f}M",
    }
    if len(kept) < len(header["tokenizer.ggml.tokens"]):
        changed |= trimmed_header(header, kept)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], first + config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = [as_it_is(tensor, None) for tensor in reader.tensors if _block(tensor.name) < first]
    if first:  # they read the target's embedding
        tensors += [as_it_is(tensor, kept) for tensor in reader.tensors if tensor.name == "token_embd.weight"]
    for name, tensor in student.state_dict().items():
        if (name == "lm_head.weight" and config.tie_word_embeddings) or (first and "embed_tokens" in name):
            continue
        name = _LAYER.sub(lambda found: f".layers.{first + int(found[1])}.", name)
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own is None:
            raise ModelError(f"{name}: GGUF has no name for it")
        count = next((heads[part] for part in heads if f".{part}." in name), 0) if FAMILIES[config.model_type] else 0
        tensors.append(Tensor(own, tuple(tensor.shape), lambda t=tensor, n=count: _rows(t, n)))  # type: ignore[misc]
    write_gguf(file, reader, changed, kind, tensors)


def _block(name: str) -> float:
    """The layer that a tensor of a GGUF file belongs to; infinity: to none."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found is not None else float("inf")


def _rows(tensor: torch.Tensor, heads: int) -> Matrix:
    """A tensor as the file has it. ``heads``: how many share the rows, where llama.cpp turns their pairs (else 0)."""
    found: Matrix = tensor.detach().to("cpu", torch.float32).numpy()
    if heads:
        found = found.reshape(heads, 2, found.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(found.shape)
    return np.ascontiguousarray(found)
