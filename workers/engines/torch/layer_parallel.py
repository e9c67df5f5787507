"""Layer-parallel drafting (EasySpec, "Layer-Parallel Speculative Decoding strategy"): a model whose attentions of N
consecutive layers all read the same input, so that they can run at once, on N devices or as one larger kernel.

Within a group of layers j = 1..N, with h the group's input:

    a_j = Attention_j(norm_j(h))              all at once
    h <- h + a_j;  h <- h + MLP_j(norm_j(h))  in order

The first and the last layer are exact. What comes of it is close to the model, not the model: good for guesses. The
weights are the model's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hetero.workers.engines.torch.attention import Forward, attend_layers
from hetero.workers.engines.torch.collectives import Team
from hetero.workers.errors import EngineError, Unsupported

Layers: TypeAlias = Sequence[Any]  # decoder layers of transformers


class Group(nn.Module):  # type: ignore[misc]
    """Layers in place of one."""

    def __init__(self, layers: Layers, team: Team | None = None) -> None:
        """``team``: who runs which layers' attentions; None: all run here."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.attention_type = getattr(layers[0], "attention_type", None)  # models ask a layer for it
        self._numbers = [layer.self_attn.layer_idx for layer in layers]
        self._team = team

    def forward(self, hidden_states: Tensor, **more: Any) -> Tensor:
        """Shapes [1, rows, width], as of a layer."""
        hidden, mixed = hidden_states, self._mixed(hidden_states, more)
        for at, layer in enumerate(self._parts):
            hidden = hidden + mixed[at]
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden

    @property
    def _parts(self) -> list[Any]:
        return list(self.layers)

    def _mixed(self, hidden: Tensor, more: dict[str, Any]) -> Sequence[Tensor] | dict[int, Tensor]:
        """What each attention makes of the group's input."""
        team, found = self._team, {}
        for at, layer in enumerate(self._parts):
            if team is None or team.owner(self._numbers[at]) == team.rank:
                found[at] = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **more)[0]
        return found if team is None else team.gather(found, self._numbers, hidden)


class BatchedGroup(Group):
    """The same for attentions of Llama's kind, all of them as one: fewer and larger kernels. The layers' weights become
    parts of common tensors, nothing is held twice."""

    def __init__(self, layers: Layers) -> None:
        """Raises Unsupported for attentions of another kind."""
        super().__init__(layers)
        attentions = [layer.self_attn for layer in layers]
        for attention in attentions:
            if {name for name, _ in attention.named_children()} != {*_READ, "o_proj"}:
                raise Unsupported("its attention is none of Llama's kind")
            if getattr(attention, "sliding_window", None) is not None:
                raise Unsupported("its attention sees a window only")
        self._first = attentions[0].layer_idx
        self._size, self._scaling = attentions[0].head_dim, attentions[0].scaling
        self._epsilon = layers[0].input_layernorm.variance_epsilon
        self._norms = torch.stack([layer.input_layernorm.weight for layer in layers])[:, None]
        self._read, self._read_bias = _joined([[getattr(a, name) for name in _READ] for a in attentions])
        self._write, self._write_bias = _joined([[a.o_proj] for a in attentions])
        self._widths = [getattr(attentions[0], name).out_features for name in _READ]

    def _mixed(self, hidden: Tensor, more: dict[str, Any]) -> Sequence[Tensor]:
        forward: Forward = more["hetero"]
        count, rows = len(self.layers), hidden.shape[1]
        wide = hidden[0].float()
        normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._epsilon)).to(hidden.dtype)
        read = torch.bmm(normed * self._norms, self._read.transpose(1, 2))
        if self._read_bias is not None:
            read = read + self._read_bias
        query, key, value = (
            part.view(count, rows, -1, self._size).transpose(1, 2) for part in read.split(self._widths, dim=2)
        )
        cos, sin = (part[0] for part in more["position_embeddings"])
        query, key = _turned(query, cos, sin), _turned(key, cos, sin)
        mixed = attend_layers(forward, self._first, query, key, value, self._scaling)
        out = torch.bmm(mixed, self._write.transpose(1, 2))
        if self._write_bias is not None:
            out = out + self._write_bias
        return list(out[:, None])


class _Passed(nn.Module):  # type: ignore[misc]
    """Stands where a layer was that a group has taken in: models look their layers up by number."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, hidden_states: Tensor, **more: Any) -> Tensor:
        return hidden_states


def layer_parallel(model: Any, size: int, make: Callable[[Layers], nn.Module]) -> Any:
    """A model of the same weights with groups of ``size`` layers between the first and the last one, as ``make`` has
    them. Raises Unsupported where its layers are of another kind."""
    body = getattr(model, "model", None)
    layers: list[Any] = list(getattr(body, "layers", ()))
    if len(layers) < 3:
        raise Unsupported("layer-parallel drafting needs a model of three layers or more")
    if any({name for name, _ in layer.named_children()} != _PARTS for layer in layers):
        raise Unsupported("layer-parallel drafting needs Llama's layers: an attention, an MLP and two norms")
    found: list[nn.Module] = [layers[0]]
    for at in range(1, len(layers) - 1, size):
        part = layers[at : min(at + size, len(layers) - 1)]
        found += [make(part), *map(_Passed, part[1:])]
    other_body, other = _shallow(body), _shallow(model)
    other_body._modules["layers"] = nn.ModuleList([*found, layers[-1]])
    other._modules["model"] = other_body
    return other


def shared(model: Any, size: int, team: Team) -> Any:
    """``layer_parallel`` over a team; with ``size`` 1 it is the model itself, if it passes ``check``."""
    return layer_parallel(model, size, lambda layers: Group(layers, team))


def check(model: Any, tried: Callable[[Any], Tensor]) -> None:
    """Raises Unsupported for a model that computes something else than the order above, one layer at a time; ``tried``:
    what a model makes of some tokens."""
    alone = layer_parallel(model, 1, lambda layers: Group(layers))
    if not torch.equal(tried(model), tried(alone)):
        raise Unsupported("layer-parallel drafting needs Llama's layers; this model's compute something else")


def guessing(model: Any, size: int, tried: Callable[[Any], Tensor]) -> Any:
    """``layer_parallel`` on one device, its attentions batched where they can be. ``tried``, errors: see ``check``."""
    check(model, tried)
    loose = layer_parallel(model, size, lambda layers: Group(layers))
    try:
        found = layer_parallel(model, size, lambda layers: BatchedGroup(layers) if len(layers) > 1 else layers[0])
        want, got = tried(loose), tried(found)
        near = torch.allclose(want, got, rtol=1e-2, atol=1e-2 * float(want.abs().max()))
    except (EngineError, AttributeError, TypeError):  # attentions or norms of another kind
        near = False
    return found if near else loose


_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_READ = ("q_proj", "k_proj", "v_proj")


def _joined(linears: Sequence[Sequence[nn.Linear]]) -> tuple[Tensor, Tensor | None]:
    """Weights [layers, out, in] and biases [layers, 1, out] of linear maps, those of a layer below each other. The maps
    keep their own as parts of these."""
    weights = torch.stack([torch.cat([linear.weight.data for linear in own]) for own in linears])
    for of_layer, own in zip(weights, linears, strict=True):
        for linear, part in zip(own, of_layer.split([linear.out_features for linear in own]), strict=True):
            linear.weight.data = part
    if linears[0][0].bias is None:
        return weights, None
    return weights, torch.stack([torch.cat([linear.bias.data for linear in own]) for own in linears])[:, None]


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of heads [layers, heads, rows, size], as Llama has them."""
    half = heads.shape[-1] // 2
    return heads * cos + torch.cat((-heads[..., half:], heads[..., :half]), dim=-1) * sin


def _shallow(module: Any) -> Any:
    """The same parameters and settings, with a table of parts of its own."""
    other = copy.copy(module)
    other._modules = dict(module._modules)
    return other
