"""The parts of `hetero distill` that need no training: texts on disk, divergences, a vocabulary cut down, prompts."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.data import PAIR
from hetero.distill.answers import drawn
from hetero.distill.corpus import TOP, Corpus, Text
from hetero.distill.lessons import batch, lesson
from hetero.distill.prompts import chat_of, read_prompts
from hetero.distill.recipe import Recipe, Workshop
from hetero.distill.students.layers import last, make_student, spread, write_student
from hetero.errors import ConfigError, ModelError
from hetero.workers.engines.torch.divergence import DIVERGENCES, shares, total_variation
from hetero.workers.models.adapter import restored, write_adapter
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.models.translation import translation
from hetero.workers.models.trimming import kept_tokens, trimmed_header
from hetero.workers.models.vocabulary import Vocabulary

TARGET = PAIR / "target.gguf"
HEADER = {name: field.contents() for name, field in gguf.GGUFReader(TARGET).fields.items()}
TOKENIZER = GgufTokenizer(TARGET)


def text_of(count: int, first: int, seed: int = 0, width: int = 0) -> Text:
    rng = np.random.default_rng(seed)
    rows = count - first
    logprobs = np.log(rng.dirichlet(np.ones(2 * TOP), rows)[:, :TOP]).astype(np.float16)
    states = rng.standard_normal((count, width)).astype(np.float16) if width else None
    ids = rng.integers(0, 4096, (rows, TOP), np.int32)
    return Text(rng.integers(0, 4096, count, np.int32), first, ids, logprobs, states)


@pytest.mark.parametrize("width", [0, 6])
def test_texts_are_read_as_they_were_written(tmp_path, width):
    corpus = Corpus(tmp_path / "corpus")
    texts = [text_of(9000 + n, n + 1, n, width) for n in range(5)]
    for text in texts:
        corpus.add(text)
    corpus.flush()
    (tmp_path / "corpus" / "00009.part").write_bytes(b"half of it")  # somebody was killed
    again = Corpus(tmp_path / "corpus")
    assert again.pieces == 2
    for one, two in zip(texts, again.texts(), strict=True):
        assert one.first == two.first
        for name in ("tokens", "ids", "logprobs", *(["states"] if width else [])):
            assert np.array_equal(getattr(one, name), getattr(two, name))
        assert width or two.states is None
    (tmp_path / "corpus" / "00000.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"00000.safetensors: damaged"):
        list(again.texts())
    (tmp_path / "corpus" / "00000.safetensors").unlink()
    left = Corpus(tmp_path / "corpus")
    left.add(texts[0])
    left.flush()  # beside what there is
    assert len(list(left.texts())) == len(list(again.texts())) > 1


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_divergences_are_none_between_equals_and_some_between_others(seed):
    torch.manual_seed(seed)
    logits = 4 * torch.randn(6, 50)
    ids = torch.stack([torch.randperm(50)[:8] for _ in range(6)])
    ids[:, -1] = -1  # a token the student has not
    own = logits.softmax(-1).gather(-1, ids.clamp(min=0))
    own[:, -1] = 0.0
    same = shares(logits, ids, own)
    other = shares(4 * torch.randn(6, 50), ids, own)
    for name, divergence in DIVERGENCES.items():
        assert divergence(*same).abs().max() < 1e-3, name
        assert (divergence(*other) > -1e-4).all() and divergence(*other).mean() > 1e-3, name
    p, q = (each.exp() for each in other)
    assert torch.allclose(total_variation(*other), 1 - torch.minimum(p, q).sum(-1), atol=1e-4)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """Chi-square by eye: 20,000 draws of 60 tokens, of which 8 are the top; each share within 5 standard deviations
    (false alarm below 1e-4)."""
    chance = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(1, 60, generator=chance)
    for temperature in (0.7, 1.0):
        many = logits.repeat(20_000, 1)
        values, ids = many.topk(8)
        found = drawn(many, values, ids, torch.full((20_000,), temperature), chance)
        p = (logits[0] / temperature).softmax(-1).numpy()
        seen = np.bincount(found, minlength=60) / 20_000
        assert (np.abs(seen - p) <= 5 * np.sqrt(p * (1 - p) / 20_000) + 1e-9).all()
    assert drawn(many[:5], values[:5], ids[:5], torch.zeros(5), chance) == [int(logits.argmax())] * 5


COUNTS = np.zeros(4096, np.int64)
np.add.at(COUNTS, TOKENIZER.encode((PAIR.parent / "held_out.txt").read_text()[:200_000]), 1)


@pytest.mark.parametrize("size", [600, 1500, 3000])
def test_a_vocabulary_cut_down_says_the_same_texts(size):
    kept = kept_tokens(HEADER, COUNTS, size)
    assert kept == sorted(set(kept)) and 300 < len(kept) <= size + 16
    changed = trimmed_header(HEADER, kept)
    tokens = changed["tokenizer.ggml.tokens"]
    assert tokens == [HEADER["tokenizer.ggml.tokens"][n] for n in kept]
    assert tokens[changed["tokenizer.ggml.eos_token_id"]] == "<|endoftext|>"
    known = set(tokens)
    made = {a + b for a, b in (merge.split(" ") for merge in changed["tokenizer.ggml.merges"])}
    whole = {
        t for t, kind in zip(tokens, changed["tokenizer.ggml.token_type"], strict=True) if kind == 1 and len(t) > 1
    }
    assert whole <= made <= known  # each can be reached by merges of what is there


def test_what_needs_no_lost_token_is_spelt_as_before(tmp_path):
    kept = kept_tokens(HEADER, COUNTS, 1500)
    student = make_student(TARGET, [0, 9], kept)
    write_student(student, TARGET, kept, "q8_0", tmp_path / "small.gguf")
    small = GgufTokenizer(tmp_path / "small.gguf")
    between = translation(TOKENIZER.vocabulary, small.vocabulary)
    assert [int(n) for n in np.flatnonzero(between.same >= 0)] == kept
    whole = lost = 0
    for line in (PAIR.parent / "held_out.txt").read_text().splitlines()[3000:3400]:
        tokens = TOKENIZER.encode(line, False)
        own = small.encode(line, False)
        if all(between.same[token] >= 0 for token in tokens):
            assert own == [int(between.same[token]) for token in tokens]
            whole += 1
        else:
            assert b"".join(small.vocabulary.pieces[token] for token in own) == line.encode()
            lost += 1
    assert whole > 50 and lost > 20


def test_an_adapter_and_its_target_are_the_drafter(tmp_path, monkeypatch):
    """By its last byte."""
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path / "cache"))
    kept = kept_tokens(HEADER, COUNTS, 1500)
    student = make_student(TARGET, [8, 9], kept)
    with torch.no_grad():
        for weight in student.model.layers.parameters():
            weight += 0.01
    drafter, adapter = tmp_path / "drafter.gguf", tmp_path / "adapter.gguf"
    write_student(student, TARGET, kept, "q8_0", drafter, first=5)
    write_adapter(drafter, TARGET, kept, 5, adapter)
    assert adapter.stat().st_size < 0.5 * drafter.stat().st_size
    again = restored(adapter, TARGET)
    one, two = gguf.GGUFReader(drafter), gguf.GGUFReader(again)
    assert len(one.tensors) == len(two.tensors) == 1 + 9 * 7 + 1
    theirs = {tensor.name: tensor for tensor in two.tensors}
    for tensor in one.tensors:
        assert tensor.tensor_type == theirs[tensor.name].tensor_type
        assert np.array_equal(tensor.data, theirs[tensor.name].data), tensor.name
    for name, field in one.fields.items():
        if not name.startswith("GGUF."):
            assert field.contents() == two.fields[name].contents(), name
    assert restored(adapter, TARGET) == again
    adapter.touch()
    with pytest.raises(ModelError, match=r"drafter.gguf: not the file that adapter.gguf was made of"):
        restored(adapter, drafter)
    with pytest.raises(ModelError, match=r"is not that of"):
        write_adapter(drafter, PAIR / "drafter.gguf", list(range(1500)), 1, tmp_path / "wrong.gguf")


def test_lessons_in_own_tokens():
    asked = Vocabulary([b"a", b"b", b"ab", b"c"], frozenset())
    own = Vocabulary([b"b", b"a"], frozenset())
    between = translation(asked, own)
    ids = np.zeros((3, TOP), np.int32)
    ids[:, 1], ids[:, 2] = 2, 1
    logprobs = np.full((3, TOP), -20.0, np.float16)
    logprobs[:, 0], logprobs[:, 1], logprobs[:, 2] = np.log(0.25), np.log(0.5), np.log(0.2)
    found = lesson(Text(np.array([0, 2, 1, 0], np.int32), 1, ids, logprobs), between, 100)
    assert found.tokens.tolist() == [1, 1, 0, 0, 1] and found.places.tolist() == [2, 3, 4]
    assert found.ids[0, :3].tolist() == [1, -1, 0]
    assert np.allclose(found.shares[0, :3], [0.5, 0.0, 0.4], atol=1e-2)  # what it cannot say counts for nothing
    short = lesson(Text(np.array([0, 2, 1, 0], np.int32), 1, ids, logprobs), between, 4)
    assert short.tokens.tolist() == [1, 0, 0, 1] and short.places.tolist() == [1, 2, 3]
    far = lesson(Text(np.array([0] * 50 + [2, 1, 0], np.int32), 50, ids, logprobs), between, 8)
    assert far.tokens.tolist() == [1, 1, 1, 1, 1, 0, 0, 1][:8] and far.places.tolist() == [5, 6, 7]
    both = batch([found, short])
    assert both["tokens"].tolist() == [[1, 1, 0, 0, 1], [1, 0, 0, 1, 0]]
    assert both["places"].tolist() == [2, 3, 4, 6, 7, 8]


def test_layers_are_spread():
    assert spread(30, 4) == [0, 10, 19, 29] and spread(10, 1) == [0] and spread(3, 2) == [0, 2]
    for count in (0, 10, 11):
        with pytest.raises(ConfigError, match=r"layers: .* from 1 to 9"):
            spread(10, count)
    assert last(30, 3, 18) == [27, 28, 29]
    for first in (0, 28):
        with pytest.raises(ConfigError, match=r"exit: .* from 1 to 27"):
            last(30, 3, first)


def test_prompts_of_files(tmp_path):
    chat = chat_of(TOKENIZER)
    assert not chat.turn  # the toy target does not chat
    lines = [
        {"prompt": "one"},
        {"turns": ["two", "more"]},
        {"messages": [{"role": "system"}, {"role": "user", "content": "3"}]},
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "text.py").write_text("import os\n" * 100)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    found = read_prompts([tmp_path], chat, TOKENIZER, 64, 0)
    assert len(found) == 3 + 2 and all(1 < len(prompt.tokens) <= 64 for prompt in found)
    (tmp_path / "chats.jsonl").write_text('{"prompt": "one"}\n{"text": "two"}\n')
    with pytest.raises(ConfigError, match=r"chats.jsonl, line 2: neither"):
        read_prompts([tmp_path], chat, TOKENIZER, 64, 0)
    with pytest.raises(ConfigError, match=r"nowhere: No such file"):
        read_prompts([tmp_path / "nowhere"], chat, TOKENIZER, 64, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"there are no prompts"):
        read_prompts([tmp_path / "empty"], chat, TOKENIZER, 64, 0)


def test_a_folder_is_gone_on_with_by_the_same_recipe_only(tmp_path):
    Workshop(tmp_path / "out", Recipe("builtin", layers=7))  # nothing came of it
    shop = Workshop(tmp_path / "out", Recipe("builtin", layers=2))
    shop.progress.wrote = 2.0
    shop.save()
    assert Workshop(tmp_path / "out", Recipe("builtin", layers=2)).progress.wrote == 2.0
    with pytest.raises(ConfigError, match=r"layers: .* was begun with 2, not 4"):
        Workshop(tmp_path / "out", Recipe("builtin", layers=4))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("Dear")
    with pytest.raises(ConfigError, match=r"out: .* is not empty"):
        Workshop(tmp_path / "full", Recipe("builtin"))
    with pytest.raises(ModelError, match=r"needs .* MiB while it is made, and its disk has"):
        shop.check_room(1 << 60)
