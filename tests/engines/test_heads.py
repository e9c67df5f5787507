"""Heads against their authors' formulas, written out, and against themselves in another order."""

from __future__ import annotations

import json
import random
from functools import cache

import numpy as np
import pytest
import torch
from helpers.builtin_pair import TARGET
from helpers.random_heads import PROPOSES, save_head
from safetensors.torch import load_file, save_file
from torch.nn.functional import silu

from hetero.workers.engines.base import Head, Row
from hetero.workers.engines.octet.engine import OctetEngine, OctetSettings
from hetero.workers.engines.torch.checkpoint import load_model
from hetero.workers.engines.torch.engine import TorchEngine, TorchSettings
from hetero.workers.engines.torch.head_engine import HeadEngine
from hetero.workers.engines.torch.states import States
from hetero.workers.errors import EngineError, ModelError, Unsupported
from hetero.workers.models.head import read_head
from hetero.workers.models.metadata import read_metadata

KINDS = ("sglang", "speculators", "dovetail")
LAYERS = read_metadata(TARGET).layers
SETTINGS = TorchSettings(sequences=3, context=256)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return save_head(tmp_path_factory.mktemp(kind), TARGET, kind)


@pytest.fixture(scope="module")
def head(folder):
    found = HeadEngine(folder, TARGET, SETTINGS)
    yield found
    found.shutdown()


@cache
def target():
    return load_model(TARGET, "float32")


@pytest.fixture(scope="module")
def states(folder):
    """Of 40 tokens of the target: what enters the layers that the head wants, by transformers itself."""
    tokens, model = torch.tensor([text(40)]), target()
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        found = model(tokens, output_hidden_states=True, use_cache=False).hidden_states
        caught = {}
        handle = model.model.layers[-1].register_forward_hook(lambda *of: caught.update(last=of[2]))
        model(tokens, use_cache=False)
        handle.remove()
    entering = [*found[:-1], caught["last"]]  # transformers' last one is normed
    return torch.cat([entering[layer][0] for layer in read_head(folder).states(LAYERS)], dim=-1)


def text(count: int) -> list[int]:
    return [random.Random(3).randrange(300, 4000) for _ in range(count)]


def formula(folder, kind: str, tokens: list[int], given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and states of a chain of tokens, each after a given state; no cache, no batch, no clever shapes."""
    told = read_head(folder)
    numbers = told.numbers
    weights = {
        name.removeprefix("midlayer."): tensor for name, tensor in load_file(folder / "model.safetensors").items()
    }
    weights = {name.removeprefix("layers.0."): tensor for name, tensor in weights.items()}
    model = target()
    embedding = weights.get("embed_tokens.weight", model.get_input_embeddings().weight.detach())

    def norm(x, weight):
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + numbers["rms_norm_eps"]) * weight

    def turned(x):  # rotary positions from 0
        angles = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(0, 16, 2) / 16)[None]
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        return x * cos + torch.cat([-x[..., 8:], x[..., :8]], -1) * sin

    def attention(x, own):
        q = turned((x @ own("self_attn.q_proj").T).view(-1, 4, 16).transpose(0, 1))
        k = turned((x @ own("self_attn.k_proj").T).view(-1, 2, 16).transpose(0, 1)).repeat_interleave(2, 0)
        v = (x @ own("self_attn.v_proj").T).view(-1, 2, 16).transpose(0, 1).repeat_interleave(2, 0)
        scores = (q @ k.transpose(1, 2) / 4).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1) @ own("self_attn.o_proj").T

    def mlp(x, own):
        return (silu(x @ own("mlp.gate_proj").T) * (x @ own("mlp.up_proj").T)) @ own("mlp.down_proj").T

    e = embedding[tokens]
    first = lambda name: weights[f"{name}.weight"]  # noqa: E731
    if kind == "dovetail":
        a, b = given @ first("feature").T, silu(norm(e, first("embedding_norm")) @ first("embedding").T)
        z = torch.sigmoid(torch.cat([a, b], -1) @ first("gate").T)
        x = z * a + (1 - z) * b
        for at in range(2):
            own = (lambda name: weights[f"layers.1.{name}.weight"]) if at else first
            x = x + attention(norm(x, own("input_layernorm")), own)
            x = x + mlp(norm(x, own("post_attention_layernorm")), own)
        return norm(x, model.model.norm.weight.detach()) @ model.get_output_embeddings().weight.detach().T, x
    normed = norm(given, first("hidden_norm"))
    x = (normed if told.normed else given) + attention(
        torch.cat([norm(e, first("input_layernorm")), normed], -1), first
    )
    x = x + mlp(norm(x, first("post_attention_layernorm")), first)
    own = norm(x, first("norm")) @ first("lm_head").T
    logits = torch.full((len(own), numbers["vocab_size"]), -torch.inf)
    logits[:, torch.arange(PROPOSES) + weights["d2t"]] = own
    return logits, x


def test_a_target_hands_out_its_states(folder, states):
    engine = TorchEngine(TARGET, TorchSettings(features=read_head(folder).states(LAYERS)))
    assert engine.limits.features == states.shape[1] == read_head(folder).features
    tokens = text(40)
    outcome = engine.prefill(1, tokens[:30])
    for row in (0, 7, 29):
        assert np.allclose(outcome.features([row])[0], states[row], rtol=2e-3, atol=2e-3)
    wrong = tokens[31] + 1
    rows = [Row(1, 1, 0, tokens[30], committed=True), Row(1, 2, 1, wrong), Row(1, 3, 1, tokens[31])]
    outcome = engine.extend([*rows, Row(1, 4, 3, tokens[32])])
    for row, place in ((0, 30), (2, 31), (3, 32)):
        assert np.allclose(outcome.features([row])[0], states[place], rtol=2e-3, atol=2e-3)
    assert not np.allclose(outcome.features([1])[0], states[31], rtol=2e-3, atol=2e-3)
    with pytest.raises(Unsupported, match="no features"):
        TorchEngine(TARGET, TorchSettings()).prefill(1, [5]).features([0])
    engine.shutdown()


def test_octet_hands_out_the_same_states(folder, states):
    """As near as int8 activations are; bit for bit the same whatever shares the forward, in prefills and windows."""
    tokens, layers = text(40), read_head(folder).states(LAYERS)
    engine = OctetEngine(TARGET, OctetSettings(2, 3, 256, features=layers))
    assert engine.limits.features == states.shape[1]
    whole = engine.prefill(1, tokens).features(range(40))
    wanted = states.numpy()
    for n in range(len(layers)):
        own = slice(n * wanted.shape[1] // len(layers), (n + 1) * wanted.shape[1] // len(layers))
        difference = np.linalg.norm(whole[:, own] - wanted[:, own], axis=-1)
        assert (difference < 0.1 * np.linalg.norm(wanted[:, own], axis=-1)).all()
    engine.prefill(2, tokens[:7])
    engine.prefill(3, tokens[:20])
    rows = [Row(2, n + 1, n, tokens[7 + n]) for n in range(9)]
    other = [Row(3, 1, 0, tokens[20]), Row(3, 2, 0, tokens[5]), Row(3, 3, 1, tokens[21])]
    mixed = [*rows[:4], other[0], *rows[4:], *other[1:]]
    found = engine.extend(mixed).features([mixed.index(row) for row in (*rows, other[0], other[2])])
    assert np.array_equal(found, whole[[*range(7, 16), 20, 21]])
    engine.shutdown()
    plain = OctetEngine(TARGET, OctetSettings(1, 1, 64))
    with pytest.raises(Unsupported, match="not asked for features"):
        plain.prefill(1, tokens[:3]).features([0])
    plain.shutdown()
    with pytest.raises(Unsupported, match=f"layers .* of {LAYERS}"):
        OctetEngine(TARGET, OctetSettings(1, 1, 64, features=(LAYERS + 1,)))


def test_prefix_and_drafts_are_as_the_formula_says(kind, folder, head, states):
    assert isinstance(head, Head) and head.limits.drafts_from == states.shape[1] and not head.limits.lasting
    tokens = text(40)[1:]  # the first has no state before it
    fine = states.half().float()  # as they travel
    given = head._head.state(fine) if kind != "dovetail" else fine
    head.inform(1, 0, states[:20].half().numpy())
    head.prefill(1, tokens[:12])
    outcome = head.prefill(1, tokens[12:20])
    with torch.inference_mode():
        logits, left = formula(folder, kind, tokens[:20], given[:20])
        assert same(outcome.logits(0), logits[19])
        # Two guesses in one call and one below in the next: each goes on from the state the head left itself.
        outcome = head.extend([Row(1, 1, 0, tokens[20]), Row(1, 2, 1, tokens[21]), Row(1, 3, 0, 77)])
        before = torch.cat([given[:20], left[19:]])
        one, left_one = formula(folder, kind, tokens[:21], before)
        assert same(outcome.logits(0), one[20])
        below = torch.cat([before, left_one[20:]])
        two, left_two = formula(folder, kind, tokens[:22], below)
        assert same(outcome.logits(1), two[21])
        assert same(outcome.logits(2), formula(folder, kind, [*tokens[:20], 77], before)[0][20])
        outcome = head.extend([Row(1, 4, 2, tokens[22])])
        three, _ = formula(folder, kind, tokens[:23], torch.cat([below, left_two[21:]]))
        assert same(outcome.logits(0), three[22])
        # Committed, they are evaluated again, from the target's states.
        head.inform(1, 20, states[20:23].half().numpy())
        head.commit(1, 0)
        rows = [Row(1, 5, 0, tokens[20], committed=True), Row(1, 6, 5, tokens[21], committed=True)]
        outcome = head.extend([*rows, Row(1, 7, 6, tokens[22], committed=True), Row(1, 8, 7, 5)])
        true, left = formula(folder, kind, tokens[:23], given[:23])
        assert same(outcome.logits(0), true[20]) and same(outcome.logits(2), true[22])
        four, _ = formula(folder, kind, [*tokens[:23], 5], torch.cat([given[:23], left[22:]]))
        assert same(outcome.logits(3), four[23])
        head.commit(1, 7)
        # What was never told is guessed, and what comes behind it is not lost.
        head.inform(1, 24, states[24:26].half().numpy())
        rows = [Row(1, n, n - 1 if n > 9 else 7, tokens[14 + n], committed=True) for n in (9, 10, 11)]
        outcome = head.extend(rows)
        given = torch.cat([given[:23], left[22:23], given[24:26]])
        assert same(outcome.logits(2), formula(folder, kind, tokens[:26], given)[0][25])
    head.close(1)
    assert head.used_cells == 0 and not head._books


def same(one: np.ndarray, two: torch.Tensor) -> bool:
    return np.allclose(one, two.numpy(), rtol=1e-3, atol=1e-3)


def test_sequences_in_one_forward_are_as_alone(head, states):
    """And a failed forward leaves things as they were."""
    tokens = text(40)[1:]
    alone = []
    for n, first in enumerate((0, 9)):
        head.inform(n, 0, states[first : first + 9].half().numpy())
        head.prefill(n, tokens[first : first + 9])
        outcome = head.extend([Row(n, 1, 0, tokens[first + 9]), Row(n, 2, 1, tokens[first + 10])])
        alone += [outcome.logits(0).copy(), outcome.logits(1).copy()]
        head.commit(n, 0)
    rows = [Row(1, 3, 0, tokens[18]), Row(0, 3, 0, tokens[9]), Row(0, 4, 3, tokens[10]), Row(1, 4, 3, tokens[19])]
    with pytest.raises(EngineError):
        head.extend([*rows, Row(1, 5, 4, 1 << 30)])
    outcome = head.extend(rows)
    for row, at in ((1, 0), (2, 1), (0, 2), (3, 3)):
        assert np.allclose(outcome.logits(row), alone[at], rtol=1e-4, atol=1e-4)
    head.close(0)
    head.close(1)


def test_what_is_no_head_of_this_target_is_refused(tmp_path):
    folder = save_head(tmp_path / "head", TARGET, "sglang")
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")

    def broken(change: dict[str, object], **more: torch.Tensor | None):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        kept = {name: tensor for name, tensor in {**weights, **more}.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors")
        with pytest.raises(ModelError) as error:
            HeadEngine(folder, TARGET, SETTINGS)
        return str(error.value)

    assert "d2t names tokens beyond" in broken({}, d2t=weights["d2t"] + 4000)
    assert "lack fc.weight" in broken({}, **{"fc.weight": None})
    assert "unknown extra" in broken({}, extra=torch.ones(3))
    assert "fc.weight is" in broken({}, **{"fc.weight": torch.ones(3, 3)})
    assert "hidden_size" in broken({"hidden_size": None})
    assert "no number" in broken({"draft_vocab_size": 1 << 40})
    assert "no number" in broken({"eagle_aux_hidden_state_layer_ids": ["a"]})
    assert "runs" in broken({"auto_map": {}}) or "code" in broken({"auto_map": {}})
    with pytest.raises(Unsupported):
        States(object(), (1,))
    nested = {**config, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}}
    (folder / "config.json").write_text(json.dumps(nested))
    assert read_head(folder).states(LAYERS) == (1, 2, 3)
