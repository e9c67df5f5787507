"""A model's own next-token layers (MTP): against their formula written out, and against themselves in another order."""

from __future__ import annotations

import random

import numpy as np
import pytest
from helpers.next_token_gguf import EPSILON, HEAD, HEADS, KV, LAYERS, THETA, TURNED, VOCABULARY, WIDTH, qwen35
from helpers.odd_gguf import rewritten
from helpers.recurrent_gguf import lfm2

from hetero.planning.trials import tried
from hetero.workers.engines.base import Head, Row
from hetero.workers.engines.llama_cpp.engine import LlamaSettings, load_llama
from hetero.workers.engines.llama_cpp.next_token import NextTokenEngine
from hetero.workers.errors import EngineError, ModelError, Unsupported
from hetero.workers.models.head import NEXT, OWN_LAYERS, read_head
from hetero.workers.models.model import read_model
from hetero.workers.models.next_layers import cut_out, next_layers, stand_alone, why_not
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.runtime.trial import Request

SETTINGS = LlamaSettings(threads=1, context=256, sequences=3, chunk=64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return qwen35(tmp_path_factory.mktemp("model") / "model.gguf")


@pytest.fixture(scope="module")
def alone(made, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HETERO_CACHE", str(tmp_path_factory.mktemp("cache")))
        return cut_out(made[0])


@pytest.fixture
def head(alone):
    found = NextTokenEngine(alone, SETTINGS)
    yield found
    found.shutdown()


def tokens(count: int, seed: int = 3) -> list[int]:
    return [random.Random(seed).randrange(3, VOCABULARY) for _ in range(count)]


def given(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float16)


def formula(weights: dict[str, np.ndarray], said: list[int], states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and states of a chain, each token after a given state; no cache, no batch."""
    own = {name.removeprefix(f"blk.{LAYERS}."): found for name, found in weights.items()}

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * own[f"{name}.weight"]

    def turned(x):  # [heads, tokens, numbers]; of the first TURNED each pairs with the one half of them on
        half = TURNED // 2
        angles = np.arange(x.shape[1])[:, None] * THETA ** (-np.arange(half) / half)[None]
        cos, sin = np.cos(angles), np.sin(angles)
        a, b = x[..., :half], x[..., half:TURNED]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., TURNED:]], -1)

    def silu(x):
        return x / (1 + np.exp(-x))

    e = own["token_embd.weight"][said]
    x = np.concatenate([norm(e, "nextn.enorm"), norm(states, "nextn.hnorm")], -1) @ own["nextn.eh_proj.weight"].T
    entering = norm(x, "attn_norm")
    both = (entering @ own["attn_q.weight"].T).reshape(-1, HEADS, 2 * HEAD)
    q, gate = both[..., :HEAD], both[..., HEAD:].reshape(-1, HEADS * HEAD)
    q = turned(norm(q, "attn_q_norm").transpose(1, 0, 2))
    k = turned(norm((entering @ own["attn_k.weight"].T).reshape(-1, KV, HEAD), "attn_k_norm").transpose(1, 0, 2))
    v = (entering @ own["attn_v.weight"].T).reshape(-1, KV, HEAD).transpose(1, 0, 2)
    k, v = k.repeat(HEADS // KV, 0), v.repeat(HEADS // KV, 0)
    scores = q @ k.transpose(0, 2, 1) / HEAD**0.5
    scores = np.where(np.triu(np.ones(scores.shape[1:]), 1) > 0, -np.inf, scores)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    read = (shares @ v).transpose(1, 0, 2).reshape(-1, HEADS * HEAD) / (1 + np.exp(-gate))
    x = x + read @ own["attn_output.weight"].T
    entering = norm(x, "post_attention_norm")
    inner = silu(entering @ own["ffn_gate.weight"].T) * (entering @ own["ffn_up.weight"].T)
    left = norm(x + inner @ own["ffn_down.weight"].T, "nextn.shared_head_norm")
    return left @ own["output.weight"].T, left


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert np.abs(got - want).max() <= 6e-3 * max(1.0, float(np.abs(want).max())), np.abs(got - want).max()


def test_a_file_of_them_alone(made, alone):
    whole = made[0]
    assert (next_layers(whole), stand_alone(whole), stand_alone(alone)) == (1, False, True)
    assert alone.stat().st_size < whole.stat().st_size / 2 and cut_out(whole) != whole
    model, target = read_model(alone, of=read_model(whole)), read_model(whole)
    assert model.head is not None and model.head.kind == OWN_LAYERS and model.head.features == WIDTH
    assert model.shape.layers == 1 and target.shape.layers == LAYERS
    assert read_head(alone).states(target.metadata.layers) == (NEXT,)
    with pytest.raises(ModelError, match="name it as the --draft"):
        read_model(alone)


def test_files_without_them_are_told(tmp_path):
    path, _ = lfm2(tmp_path / "lfm2.gguf")
    with pytest.raises(ModelError, match="it has no next-token layers"):
        cut_out(path)
    with pytest.raises(ModelError, match="GGUF files"):
        cut_out(tmp_path)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"qwen35__nextn_predict_layers": 2}, "it has 2 next-token layers behind 3 others"),
        ({"qwen35__nextn_predict_layers": 5}, "behind 0 others"),
        ({"qwen35__embedding_length_out": 1}, "not as wide as its embedding"),
        (
            {"general__architecture": "step35", "step35__nextn_predict_layers": 1, "step35__block_count": 5},
            "not run here",
        ),
        ({}, "was left out of the file"),
    ],
)
def test_odd_files_are_one_line(made, tmp_path, changes, says):
    """Of which llama.cpp would end the process, or read what is not there."""
    left_out = [] if changes else [f"blk.{LAYERS}.nextn.eh_proj.weight"]
    odd = rewritten(made[0], tmp_path / "odd.gguf", None, left_out, **changes)
    with pytest.raises(ModelError, match=says) as error:
        cut_out(odd)
    assert "\n" not in str(error.value) and why_not(made[0]) is None


def test_a_target_hands_out_what_they_draw_from(made):
    """Its end, whose output is its logits; whatever the calls are, also with tokens that are met again."""
    path, weights = made
    engine = load_llama(path, LlamaSettings(threads=1, context=256, sequences=2, features=(2, NEXT)))
    assert engine.limits.features == 2 * WIDTH
    said = tokens(60)
    outcome = engine.prefill(1, said, every=True)
    whole = outcome.features(range(60)).astype(np.float32)
    for n in (0, 30, 59):
        close(whole[n, WIDTH:] @ weights["output.weight"].T, outcome.logits(n))
    engine.prefill(2, said[:20])
    for first in (20, 28):
        rows = [Row(2, n, n - 1 if n > 20 else 0, said[n]) for n in range(first, first + 8)]
        outcome = engine.extend([*rows[:4], Row(2, 100 + first, rows[3].node, 5)])
        close(outcome.features([0, 3]).astype(np.float32), whole[[first, first + 3]])
        assert np.abs(outcome.features([4]).astype(np.float32) - whole[first + 4]).max() > 0.1
        engine.commit(2, rows[3].node)
        outcome = engine.extend(rows[4:])
        close(outcome.features(range(4)).astype(np.float32), whole[first + 4 : first + 8])
        engine.commit(2, rows[7].node)
    with pytest.raises(Unsupported, match="no features"):
        load_llama(path, SETTINGS).prefill(1, [5]).features([0])
    engine.shutdown()


def test_they_compute_their_formula(made, head):
    assert isinstance(head, Head) and head.limits.drafts_from == WIDTH and not head.limits.lasting
    said, states = tokens(40), given(40)
    states[0] = 0  # before the first token is none
    wanted, _ = formula(made[1], said, states.astype(np.float32))
    head.inform(1, 1, states[1:])
    close(head.prefill(1, said[:20]).logits(0), wanted[19])
    outcome = head.prefill(1, said[20:30], every=True)
    for n in range(10):
        close(outcome.logits(n), wanted[20 + n])
    rows = [Row(1, n, n - 1 if n > 30 else 0, said[n], committed=True) for n in range(30, 40)]
    outcome = head.extend(rows)
    for n, row in enumerate(rows):
        close(outcome.logits(n), wanted[row.node])


def test_guesses_go_on_from_their_own_states(made, head):
    """Branches of two levels in one call, two sequences in it; and what is committed is evaluated from true states."""
    said, states = tokens(30), given(40)
    states[0] = 0
    lengths = {1: 20, 2: 13}
    for seq, length in lengths.items():
        head.inform(seq, 1, states[1:length])
        head.prefill(seq, said[:length])

    def guessed(path: list[int], length: int = 20) -> np.ndarray:
        _, left = formula(made[1], said[:length], states[:length].astype(np.float32))
        own = [*states[:length].astype(np.float32), left[-1]]
        for count in range(1, len(path) + 1):
            logits, found = formula(made[1], [*said[:length], *path[:count]], np.stack(own))
            own.append(found[-1])
        return logits[-1]

    tree = {1: (0, 11), 2: (1, 12), 3: (0, 13), 4: (2, 14), 5: (1, 15)}
    paths = {}
    for node, (parent, token) in tree.items():
        paths[node] = [*paths.get(parent, []), token]
    outcome = head.extend([Row(seq, node, *of) for node, of in tree.items() for seq in (1, 2)])
    for at, (node, seq) in enumerate((node, seq) for node in tree for seq in (1, 2)):
        close(outcome.logits(at), guessed(paths[node], lengths[seq]))
    outcome = head.extend([Row(1, 6, 4, 16)])
    close(outcome.logits(0), guessed([11, 12, 14, 16]))

    # The guesses are dropped, the same tokens come again with what the target found; of both, under the same names.
    for seq, length in lengths.items():
        head.commit(seq, 0)
        head.inform(seq, length, states[length : length + 2])
    rows = [Row(seq, 7 + n, 6 + n if n else 0, (11, 12)[n], committed=True) for n in (0, 1) for seq in (1, 2)]
    outcome = head.extend([*rows, Row(1, 9, 8, 21)])
    wanted, _ = formula(made[1], [*said[:13], 11, 12], states[:15].astype(np.float32))
    close(outcome.logits(1), wanted[13])
    close(outcome.logits(3), wanted[14])
    wanted, found = formula(made[1], [*said[:20], 11, 12], states[:22].astype(np.float32))
    close(outcome.logits(0), wanted[20])
    close(outcome.logits(2), wanted[21])
    logits, _ = formula(made[1], [*said[:20], 11, 12, 21], np.stack([*states[:22].astype(np.float32), found[-1]]))
    close(outcome.logits(4), logits[-1])
    head.commit(1, 8, keep=[9])
    close(head.extend([Row(1, 10, 9, 22)]).logits(0), _after(made, said, states, found))


def _after(made, said, states, found) -> np.ndarray:
    own = [*states[:22].astype(np.float32), found[-1]]
    _, next_left = formula(made[1], [*said[:20], 11, 12, 21], np.stack(own))
    logits, _ = formula(made[1], [*said[:20], 11, 12, 21, 22], np.stack([*own, next_left[-1]]))
    return logits[-1]


def test_a_failed_forward_leaves_no_trace(made, head):
    said, states = tokens(20), given(20)
    states[0] = 0
    head.inform(1, 1, states[1:])
    head.prefill(1, said)
    cells = head.used_cells
    want = head.extend([Row(1, 1, 0, 7), Row(1, 2, 1, 8)]).logits(1).copy()
    head.commit(1, 0)
    run, calls = head._rows.run, []

    def fails(context: object) -> int:
        calls.append(1)
        return run(context) if len(calls) < 2 else -3

    head._rows.run = fails
    with pytest.raises(EngineError, match="code -3"):
        head.extend([Row(1, 3, 0, 7), Row(1, 4, 3, 8), Row(1, 5, 0, 9)])
    head._rows.run = run
    assert head.used_cells == cells
    assert np.allclose(head.extend([Row(1, 6, 0, 7), Row(1, 7, 6, 8)]).logits(1), want, atol=1e-4)
    head.close(1)
    assert head.used_cells == 0


def test_exact_mode_has_none(alone):
    with pytest.raises(Unsupported, match="not exact"):
        NextTokenEngine(alone, LlamaSettings(threads=1, exact=True))


def test_they_are_tried_with_the_states_that_their_target_left(made, alone, tmp_path):
    """For plans: in processes of their own, a few guesses behind each committed token."""
    text, file = tokens(30), tmp_path / "states.npy"
    common = {"strategy": "serial", "gamma": 4, "cores": [0], "sequences": 1, "context": 256}
    target = WorkerSpec("target", str(made[0]), "llama_cpp", features=[NEXT], **common)
    found = tried(Request(target, [1, 4], text, str(file), temperature=0.0))
    assert found is not None and len(found.samples) == 29 and found.exact
    states = np.load(file)
    assert states.shape == (29, WIDTH)
    drafter = WorkerSpec("drafter", str(alone), "next_token", **common)
    found = tried(Request(drafter, [1, 4], text, str(file), temperature=0.0))
    assert found is not None and found.calibrate > 0 and len(found.candidates) == 29
    given = np.concatenate([np.zeros((1, WIDTH), np.float16), states]).astype(np.float32)
    for at in (1, 5, 9, 13):  # the first guess behind a committed token goes on from the state which that one left
        _, left = formula(made[1], text[:at], given[:at])
        wanted, _ = formula(made[1], text[: at + 1], np.concatenate([given[:at], left[-1:]]))
        assert found.candidates[at][0][0] == wanted[-1].argmax()
