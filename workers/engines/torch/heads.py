"""Heads as modules: from the target's state of a token and the token after it to what comes next, and a state of the
head's own that stands for the target's where that is not known yet.

EAGLE-3 (Li et al. 2025, section 3), as SGLang, vLLM and speculators have it; Dovetail (Zhang et al. 2024, section 3.3,
dynamic gating fusion).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import gguf
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from hetero.workers.errors import ModelError
from hetero.workers.models.head import DOVETAIL, EAGLE3, HeadConfig, read_head
from hetero.workers.models.tensors import read_safetensors

_SHARED = {  # the target's own, where a head brings none: its names in safetensors, and in GGUF
    "embed_tokens.weight": (("model.embed_tokens.weight",), ("token_embd.weight",)),
    "lm_head.weight": (("lm_head.weight", "model.embed_tokens.weight"), ("output.weight", "token_embd.weight")),
    "norm.weight": (("model.norm.weight",), ("output_norm.weight",)),
}
_UNUSED = ("t2d", "inv_freq")
Seeing: TypeAlias = Any  # what the attention that is set needs to know: ``attention.Forward`` for ours


class HeadModel(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A head. A *state* is as wide as the head is."""

    def __init__(self, head: HeadConfig) -> None:
        super().__init__()
        self.config = _llama(head)
        config = self.config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, at) for at in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, head.proposes, bias=False)
        self.rotary = LlamaRotaryEmbedding(config)
        self.register_buffer("d2t", torch.zeros(head.proposes, dtype=torch.long))

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.lm_head.weight.dtype

    def state(self, features: Tensor) -> Tensor:
        """The target's features as states, [rows, width]."""
        return features

    def fused(self, embedded: Tensor, states: Tensor, positions: tuple[Tensor, Tensor], hetero: Seeing) -> Tensor:
        """Tokens and the states before them as what the further layers get, [1, rows, width]."""
        raise NotImplementedError

    def forward(
        self, tokens: Tensor, states: Tensor, positions: Tensor, hetero: Seeing, keep: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Logits [rows, the target's vocabulary], of the last ``keep`` (0: all), and states [rows, width] of tokens
        [1, rows]; ``states`` [rows, width] are those of the token before each, ``positions`` [1, rows]."""
        found = self.run(self.embed_tokens(tokens), states[None], positions, hetero)
        own = self.said(found[:, -keep:])[0]
        if own.shape[1] == self.config.vocab_size:
            return own, found[0]
        logits = own.new_full((len(own), self.config.vocab_size), float("-inf"))
        logits[:, torch.arange(own.shape[1], device=own.device) + self.d2t] = own
        return logits, found[0]

    def run(self, embedded: Tensor, states: Tensor, positions: Tensor, hetero: Seeing) -> Tensor:
        """States [1, rows, width] of tokens as they are embedded, from those before them."""
        around = self.rotary(embedded, positions)
        found = self.fused(embedded, states, around, hetero)
        for layer in self.layers[self.first :]:
            found = layer(found, position_embeddings=around, hetero=hetero)
        return found

    def said(self, states: Tensor) -> Tensor:
        """Logits [.., tokens it can propose]."""
        found: Tensor = self.lm_head(self.norm(states))
        return found

    first = 0  # layer behind those that ``fused`` runs


class Eagle3(HeadModel):
    """Its first layer attends over the token's embedding beside the state before it."""

    first = 1

    def __init__(self, head: HeadConfig) -> None:
        super().__init__(head)
        width, first = self.config.hidden_size, self.layers[0]
        self._normed = head.normed
        self.fc = nn.Linear(head.features, width, bias=False)
        for name in ("q_proj", "k_proj", "v_proj"):
            old = getattr(first.self_attn, name)
            setattr(first.self_attn, name, nn.Linear(2 * width, old.out_features, bias=old.bias is not None))
        first.hidden_norm = LlamaRMSNorm(width, eps=self.config.rms_norm_eps)

    def state(self, features: Tensor) -> Tensor:
        found: Tensor = self.fc(features)
        return found

    def fused(self, embedded: Tensor, states: Tensor, positions: tuple[Tensor, Tensor], hetero: Seeing) -> Tensor:
        first: Any = self.layers[0]
        normed = first.hidden_norm(states)
        both = torch.cat([first.input_layernorm(embedded), normed], dim=-1)
        mixed, _ = first.self_attn(both, position_embeddings=positions, attention_mask=None, hetero=hetero)
        found: Tensor = (normed if self._normed else states) + mixed
        return found + first.mlp(first.post_attention_layernorm(found))


class Dovetail(HeadModel):
    """A gate weighs the state against the token, in each number."""

    def __init__(self, head: HeadConfig) -> None:
        super().__init__(head)
        width = self.config.hidden_size
        self.feature = nn.Linear(width, width, bias=False)
        self.embedding_norm = LlamaRMSNorm(width, eps=self.config.rms_norm_eps)
        self.embedding = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(2 * width, width, bias=False)

    def fused(self, embedded: Tensor, states: Tensor, positions: tuple[Tensor, Tensor], hetero: Seeing) -> Tensor:
        of_state = self.feature(states)
        of_token = nn.functional.silu(self.embedding(self.embedding_norm(embedded)))
        gate = torch.sigmoid(self.gate(torch.cat([of_state, of_token], dim=-1)))
        return gate * of_state + (1.0 - gate) * of_token


def blank_head(head: HeadConfig) -> HeadModel:
    """A head that has learned nothing."""
    model: HeadModel = {EAGLE3: Eagle3, DOVETAIL: Dovetail}[head.kind](head)
    return model


def load_head(path: Path, target: Path, dtype: str) -> HeadModel:
    """The head of a directory; what it shares with its ``target`` comes from there. Raises ModelError."""
    config = read_head(path)
    try:
        model = blank_head(config)
    except (StrictDataclassError, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: its numbers are no llama's: {str(error).strip().splitlines()[0]}") from error
    given: dict[str, Tensor] = {}
    try:
        for file in sorted(path.glob("*.safetensors")):
            given |= load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: its weights cannot be read: {error}") from error
    found = {name.removeprefix("model.").replace("midlayer.", "layers.0."): given[name] for name in given}
    found = {name: tensor for name, tensor in found.items() if not name.endswith(_UNUSED)}
    wanted = model.state_dict()
    for name in _SHARED:
        if name not in found and wanted[name].shape[0] in (config.numbers["vocab_size"], config.numbers["hidden_size"]):
            found[name] = of_target(target, name)
    if config.proposes == config.numbers["vocab_size"]:
        found["d2t"] = torch.zeros(config.proposes, dtype=torch.long)
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found or name not in wanted:
            raise ModelError(f"{path}: its weights {'lack' if name in wanted else 'have an unknown'} {name}")
        if found[name].shape != wanted[name].shape:
            raise ModelError(f"{path}: {name} is {[*found[name].shape]}, not {[*wanted[name].shape]}")
    named = torch.arange(config.proposes) + found["d2t"].long()
    if int(named.min()) < 0 or int(named.max()) >= config.numbers["vocab_size"]:
        raise ModelError(f"{path}: its d2t names tokens beyond the vocabulary")
    model.load_state_dict(found)
    model.to(getattr(torch, dtype)).eval()
    model.rotary = LlamaRotaryEmbedding(model.config)  # whose frequencies must not be rounded
    return model


def _llama(head: HeadConfig) -> LlamaConfig:
    """As transformers has it, with our attention."""
    numbers = {name: value for name, value in head.numbers.items() if name not in ("architectures", "dtype")}
    return LlamaConfig(**{**numbers, "attn_implementation": "hetero", "tie_word_embeddings": False})


def of_target(path: Path, name: str) -> Tensor:
    """A tensor of the target's that heads share, by its name in a head. Raises ModelError."""
    safe, packed = _SHARED[name]
    try:
        if path.is_dir():
            files = read_safetensors(path)
            if (own := next((own for own in safe if own in files), None)) is not None:
                with safe_open(files[own].file, framework="pt") as opened:
                    return opened.get_tensor(own)
        else:
            tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
            if (own := next((own for own in packed if own in tensors), None)) is not None:
                tensor = tensors[own]
                values = gguf.dequantize(tensor.data, tensor.tensor_type)
                return torch.from_numpy(values.reshape([int(n) for n in tensor.shape[::-1]]).copy())
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: its {name} cannot be read: {error}") from error
    raise ModelError(f"the head brings no {name}, and {path} has none")
