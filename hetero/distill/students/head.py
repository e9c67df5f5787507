"""A head that learns: it reads the target's states of all but the latest tokens, and goes on from its own.

EAGLE-3 (Li et al. 2025) or Dovetail's gated fusion (Zhang et al. 2024). The steps of a draft are unrolled as EAGLE-3
does ("training-time test", section 3.2): a draft's second and third token are to hold up, too. Its layers begin as the
target's last ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from hetero.distill.students.student import Cut, Source, Words
from hetero.workers.engines.base import Engine
from hetero.workers.engines.torch.checkpoint import load_model
from hetero.workers.engines.torch.heads import HeadModel, blank_head, of_target
from hetero.workers.models.head import DOVETAIL, EAGLE3, HeadConfig

HEADS = {"eagle": EAGLE3, "dgf": DOVETAIL}
STEPS = 3  # of a draft
_ARCHITECTURES = {EAGLE3: "LlamaForCausalLMEagle3", DOVETAIL: "DovetailForCausalLM"}
_NUMBERS = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "rope_parameters", "hidden_act",
)  # fmt: skip


class Observed:
    """A target's engine, whose states are written down."""

    said = "the target's states"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.width: int = engine.limits.features

    def states(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float16]:
        text, most = [int(token) for token in tokens], self._engine.limits.chunk
        found = []
        for at in range(0, len(text), most):
            part = text[at : at + most]
            found.append(self._engine.prefill(1, part).features(range(len(part))).copy())
        self._engine.close(1)
        return np.concatenate(found)


class Unrolled:
    """What the attention of a head sees while several steps of a draft are learned at once.

    In step ``n`` (0: the first) a token has before it the target's states of all tokens but the ``n`` latest, and the
    head's own of those: the keys of step 0 up to there, then one of each later step.
    """

    def __init__(self, texts: int, length: int) -> None:
        self._texts, self._length = texts, length
        self._keys: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Of [1, heads, texts * length, size] to [1, texts * length, heads, size]."""
        heads, size = query.shape[1], query.shape[3]
        query = self._apart(query) * scaling
        told = self._keys.setdefault(layer, [])
        told.append((self._apart(key, heads), self._apart(value, heads)))
        step = len(told) - 1
        keys, values = told[0]
        at = torch.arange(self._length, device=query.device)
        seen = at[None, :] <= at[:, None] - step
        seen[:, 0] = at == 0  # nothing is known before the first token: a head leaves it out
        scores = [(query @ keys.transpose(-1, -2)).masked_fill(~seen, float("-inf"))]
        later = [(_back(k, step - n), _back(v, step - n)) for n, (k, v) in enumerate(told) if n]
        scores += [(query * k).sum(-1, keepdim=True) for k, _ in later]
        weights = torch.cat(scores, dim=-1).softmax(-1)
        mixed = weights[..., : self._length] @ values
        for n, (_, v) in enumerate(later):
            mixed = mixed + weights[..., self._length + n, None] * v
        return mixed.permute(0, 2, 1, 3).reshape(1, -1, heads, size)

    def _apart(self, rows: Tensor, heads: int = 0) -> Tensor:
        """[1, kv heads, texts * length, size] as [texts, heads, length, size]."""
        found = rows[0].unflatten(1, (self._texts, self._length)).transpose(0, 1)
        return found.repeat_interleave(heads // found.shape[1], 1) if heads else found


def _back(rows: Tensor, places: int) -> Tensor:
    """What stood so many places before each."""
    return rows if places == 0 else nn.functional.pad(rows[..., :-places, :], (0, 0, places, 0))


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: object,
    scaling: float,
    hetero: Unrolled,
    **more: object,
) -> tuple[Tensor, None]:
    return hetero.attend(module.layer_idx, query, key, value, scaling), None


transformers.AttentionInterface.register("unrolled", _attention)


class Learning(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A head, without the embedding that it shares with the target."""

    def __init__(self, head: HeadModel) -> None:
        super().__init__()
        del head.embed_tokens
        head.config._attn_implementation = "unrolled"
        self.head = head

    def forward(self, embedded: Tensor, features: Tensor) -> Tensor:
        """Logits [texts, steps, length, tokens it can propose] of tokens as embedded [texts, length, width], and the
        target's ``features`` of them [texts, length, numbers]. (Texts come first: so several GPUs can share them.)"""
        texts, length = embedded.shape[:2]
        positions = torch.arange(length, device=embedded.device).repeat(texts)[None]
        seeing, logits = Unrolled(texts, length), []
        states = self.head.state(features)
        for _ in range(STEPS):
            found = self.head.run(embedded.flatten(0, 1)[None], _back(states, 1).flatten(0, 1)[None], positions, seeing)
            logits.append(self.head.said(found)[0].unflatten(0, (texts, length)))
            states = found[0].unflatten(0, (texts, length))
        return torch.stack(logits, dim=1)


class Head:
    """The student."""

    def __init__(self, kind: str, target: Path, layers: int, kept: Sequence[int], source: Source) -> None:
        """``layers`` of its own; ``kept``: tokens it can propose; ``source``: of the states that ``head_config`` names.
        Raises ModelError."""
        teacher = load_model(target, "float32", attention="sdpa")
        whole = teacher.config.num_hidden_layers
        self._config, self._numbers = head_config(kind, teacher.config, layers, len(kept))
        head = blank_head(self._config)
        _begin(head, self._config.kind, teacher, kept)
        del teacher
        self._kept = np.asarray(kept, np.int64)
        self.words: Words = Cut.to(kept, self._config.numbers["vocab_size"])
        self.source: Source | None = source
        self._embedding = of_target(target, "embed_tokens.weight").float()
        self._states = self._config.states(whole)
        self.model = Learning(head)

    def say(self, model: Any, given: Mapping[str, Tensor]) -> Tensor:
        tokens, features = given["tokens"], given["states"]
        embedded = nn.functional.embedding(tokens.to(self._embedding.device), self._embedding)
        found: Tensor = model(embedded.to(features.device), features)
        return found.transpose(0, 1).flatten(1, 2)

    def facts(self) -> list[tuple[str, str]]:
        own = f"{self._config.numbers['num_hidden_layers']} layers of its own"
        return [
            ("kind", f"{self._config.kind}, {own}, drafts from what enters the target's {[*self._states]}"),
            ("unrolled steps", str(STEPS)),
        ]

    def write(self, out: Path) -> Path:
        folder, part = out / "drafter", out / "drafter.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        weights = {
            name.replace("layers.0.", "midlayer.") if self._config.kind == EAGLE3 else name: tensor.half().contiguous()
            for name, tensor in self.model.head.state_dict().items()
            if name != "d2t"
        }
        if len(self._kept) < len(self.words.same):
            weights["d2t"] = torch.from_numpy(self._kept - np.arange(len(self._kept)))
        save_file(weights, part / "model.safetensors")
        told = {**self._numbers, "eagle_aux_hidden_state_layer_ids": list(self._states)}
        (part / "config.json").write_text(json.dumps(told, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        return folder


def head_states(kind: str, layers: int) -> tuple[int, ...]:
    """What a head of a kind of ``HEADS`` drafts from: what enters so many of a target's ``layers``."""
    return HeadConfig(HEADS[kind], {}, 0, None, 0).states(layers)


def head_config(kind: str, target: Any, layers: int, proposes: int) -> tuple[HeadConfig, dict[str, Any]]:
    """Of a head for a ``target`` of that (transformers) config; and its own config.json. ``kind``: of ``HEADS``."""
    own = HEADS[kind]
    told = target.to_dict()
    numbers = {name: told[name] for name in _NUMBERS if told.get(name) is not None}
    numbers |= {
        "architectures": [_ARCHITECTURES[own]],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "draft_vocab_size": proposes,
    }
    return HeadConfig(own, numbers, numbers["hidden_size"], None, proposes), numbers


def _begin(head: HeadModel, kind: str, teacher: Any, kept: Sequence[int]) -> None:
    """With the target's weights, as far as those fit."""
    whole, own, given = teacher.config.num_hidden_layers, head.config.num_hidden_layers, teacher.state_dict()
    width = head.config.hidden_size
    found = {"norm.weight": given["model.norm.weight"], "lm_head.weight": teacher.lm_head.weight[torch.tensor(kept)]}
    for layer in range(own):
        prefix = f"model.layers.{whole - own + layer}."
        found |= {
            f"layers.{layer}.{name.removeprefix(prefix)}": tensor
            for name, tensor in given.items()
            if name.startswith(prefix)
        }
    if kind == EAGLE3:  # the token's half of what the first layer attends with is still to be learned
        for name in ("q_proj", "k_proj", "v_proj"):
            own_name = f"layers.0.self_attn.{name}.weight"
            found[own_name] = torch.cat([torch.zeros_like(found[own_name]), found[own_name]], dim=-1)
        found["layers.0.hidden_norm.weight"] = found["layers.0.input_layernorm.weight"]
        found["layers.0.input_layernorm.weight"] = given["model.layers.0.input_layernorm.weight"]
        found["fc.weight"] = torch.cat([torch.zeros(width, 2 * width), torch.eye(width)], dim=-1)
    elif kind == DOVETAIL:
        found["feature.weight"] = torch.eye(width)
        found["embedding_norm.weight"] = given["model.layers.0.input_layernorm.weight"]
    blank = head.state_dict()
    head.load_state_dict(
        {n: t.clone() for n, t in found.items() if n in blank and blank[n].shape == t.shape}, strict=False
    )
