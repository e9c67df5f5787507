"""A drafter of other tokens: it proposes what it would as the target's own kind, as far as both have the tokens."""

from __future__ import annotations

import random

import numpy as np
import pytest
from helpers.builtin_pair import DRAFTER, TARGET
from helpers.engines import prefill, tokens
from helpers.odd_gguf import other_vocabulary
from helpers.real_workers import Client, opening, until, workers

from hetero.cluster.inventory import take_inventory
from hetero.config import make_config
from hetero.data import HELD_OUT
from hetero.errors import ModelError
from hetero.models import find_model
from hetero.planning.planner import make_plan
from hetero.planning.profiles import Profiles, agreement_of
from hetero.planning.vocabularies import shared
from hetero.workers.engines.base import Row
from hetero.workers.errors import UnknownNode
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.models.translation import Translation, translation
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.runtime.loading import load_engine
from hetero.workers.runtime.spec import WorkerSpec

SIZE = 4096
RENAMED = set(random.Random(1).sample(range(300, SIZE), 400))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Drafters whose ids are shuffled: of the same tokens, and of which 400 have none of the target's bytes."""
    folder = tmp_path_factory.mktemp("vocabularies")
    order = list(range(1, SIZE))
    random.Random(0).shuffle(order)
    order = [*order[:7], 0, *order[7:]]
    return {
        "shuffled": other_vocabulary(DRAFTER, folder / "shuffled.gguf", order),
        "fewer": other_vocabulary(DRAFTER, folder / "fewer.gguf", order, RENAMED),
    }


def spec(file, **more) -> WorkerSpec:
    own = {"engine": "octet", "strategy": "ahead", "gamma": 0, "sequences": 2, "context": 512, **more}
    return WorkerSpec("drafter", str(file), cores=[0], vocabulary=str(TARGET) if file != DRAFTER else "", **own)


@pytest.fixture(scope="module")
def pair(files):
    found = [load_engine(spec(file)) for file in (DRAFTER, files["shuffled"], files["fewer"])]
    yield found
    for engine in found:
        engine.shutdown()


def test_shuffled_ids_give_the_same_logits(pair):
    own, shuffled, _ = pair
    assert shuffled.limits.vocabulary == SIZE and not shuffled.limits.prefixes
    rng = random.Random(3)
    text = GgufTokenizer(TARGET).encode(HELD_OUT.read_text()[5_000:7_000], False)[:300]
    found = [prefill(engine, 1, text) for engine in (own, shuffled)]
    assert np.allclose(*found, rtol=1e-4, atol=1e-3)
    tip = 0
    for first in range(1, 25, 6):
        branch = tokens(rng, 5)
        rows = [Row(1, first + n, first + n - 1 if n else tip, token) for n, token in enumerate(branch)]
        rows.append(Row(1, first + 5, first, 77))
        outcomes = [engine.extend(rows) for engine in (own, shuffled)]
        for at in range(len(rows)):
            assert np.allclose(*(outcome.logits(at) for outcome in outcomes), rtol=1e-4, atol=1e-3)
        for engine in (own, shuffled):
            engine.commit(1, first + 1, {first + 2} if first < 12 else ())
        tip = first + 1
    for engine in (own, shuffled):
        engine.close(1)
        assert engine.used_cells == 0


def test_what_it_has_no_token_for_is_spelt_and_never_proposed(pair):
    own, _, fewer = pair
    text = GgufTokenizer(TARGET).encode(HELD_OUT.read_text()[5_000:7_000], False)[:200]
    one, two = prefill(own, 1, text), prefill(fewer, 1, text)
    absent = sorted(RENAMED)
    assert np.isneginf(two[absent]).all() and np.isfinite(np.delete(two, absent)).all()
    assert np.corrcoef(np.delete(one, absent), np.delete(two, absent))[0, 1] > 0.7
    # Tokens that it spells are several of its own, in a chain, and what hangs on them goes on behind the last.
    a, b = absent[:2]
    rows = [Row(1, 1, 0, a), Row(1, 2, 1, b), Row(1, 3, 2, 50), Row(1, 4, 1, 51)]
    outcome = fewer.extend(rows)
    assert all(np.isfinite(outcome.logits(at)).sum() == SIZE - len(absent) for at in range(4))
    fewer.commit(1, 2, {3})
    with pytest.raises(UnknownNode):
        fewer.commit(1, 4)
    with pytest.raises(UnknownNode):
        fewer.extend([Row(1, 9, 4, 5)])
    assert fewer.extend([Row(1, 10, 3, 60)]).logits(0).shape == (SIZE,)
    for engine in (own, fewer):
        engine.close(1)
    assert fewer.used_cells == 0


def test_more_rows_than_the_engine_takes_at_once(pair):
    _, _, fewer = pair
    prefill(fewer, 1, [3, 4, 5])
    absent = sorted(RENAMED)
    most = fewer.limits.rows
    rows = [Row(1, n + 1, n, absent[n % 400]) for n in range(min(most, 50))]
    whole = fewer.extend(rows)
    last = whole.logits(len(rows) - 1).copy()
    first = whole.logits(0).copy()
    fewer.close(1)
    inner = fewer._engine
    limits = inner.limits
    try:
        inner.limits = type(limits)(**{**{f: getattr(limits, f) for f in limits.__slots__}, "rows": 16})
        prefill(fewer, 1, [3, 4, 5])
        parts = fewer.extend(rows)
        assert np.allclose(parts.logits(0), first, atol=1e-3)
        assert np.allclose(parts.logits(len(rows) - 1), last, atol=1e-3)
    finally:
        inner.limits = limits
        fewer.close(1)


def test_a_vocabulary_in_another():
    asked = Vocabulary([b"", b"ab", b"c", b"abc", b"\xc3", b"zz", b""], frozenset({0}), None, {0: b"<end>", 6: b"<x>"})
    own = Vocabulary([b"c", b"a", b"b", b"ab", b"\xc3", b""], frozenset({5}), None, {5: b"</s>"})
    both: Translation = translation(asked, own)
    assert both.same.tolist() == [5, 3, 0, -1, 4, -1, -1]
    assert both.spelt(3) == [3, 0] and both.of([3, 2, 1]) == [3, 0, 0, 3]
    assert both.spelt(5) == [0]  # there is no z in it at all: something must stand there
    assert both.share([1, 2, 3, 3]) == 0.5


def test_tokens_for_bare_bytes_stand_for_what_has_no_other():
    """As SentencePiece has them: 256 in a row, beside the letters' own."""
    bare = [bytes([n]) for n in range(256)]
    spm = Vocabulary([b"", *bare, b".", b"a", b"ab"], frozenset({0}))
    bpe = Vocabulary([b"a", b".", b"ab", b"\n", b"b", b""], frozenset({5}), None, {5: b"<end>"})
    into, out_of = translation(bpe, spm), translation(spm, bpe)
    assert into.same.tolist() == [258, 257, 259, 1 + 10, 1 + ord("b"), 0]
    assert out_of.same[257] == 1 and out_of.same[258] == 0 and out_of.same[1 + ord(".")] == -1
    assert out_of.same[1 + 10] == 3 and out_of.spelt(1 + ord(".")) == [1]


def test_a_plan_knows_what_it_would_do(files, monkeypatch, tmp_path):
    """Tried as any other drafter: every position of a text asked at once."""
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    config = make_config({"draft": str(files["shuffled"]), "target_engine": "octet", "draft_engine": "octet"})
    inventory = take_inventory()
    target, drafter = make_plan(config, inventory).placements
    text = GgufTokenizer(TARGET).encode(HELD_OUT.read_text()[5_000:7_000], False)[:200]
    profiles = Profiles(target, text, {}, print)
    found = profiles.of(target), profiles.of(drafter)
    assert all(found)
    assert 0.3 < agreement_of(*found).alpha < 1.0


def test_what_two_models_share_is_told(files):
    target = find_model(str(TARGET), "target")
    assert shared(target, find_model(str(DRAFTER), "drafter")).difference == ""
    found = shared(target, find_model(str(files["shuffled"]), "drafter"))
    assert found.difference.startswith("token ") and found.share == 1.0
    assert 0.8 < shared(target, find_model(str(files["fewer"]), "drafter")).share < 1.0
    with pytest.raises(ModelError, match="vocabulary mismatch"):
        few = other_vocabulary(DRAFTER, files["fewer"].parent / "few.gguf", range(SIZE), range(300, SIZE))
        shared(target, find_model(str(few), "drafter"))


@pytest.mark.parametrize("kind", ["shuffled", "fewer"])
def test_texts_are_the_targets_and_drafts_as_good(files, kind):
    """Over real sockets; agreement hardly less than that of the drafter it was made of."""
    prompt = GgufTokenizer(TARGET).encode("def area(width, height):\n", True)
    texts, shares = [], []
    for file in (DRAFTER, files[kind]):
        target = WorkerSpec("target", str(TARGET), "octet", "serial", 4, cores=[0], sequences=4, context=512)
        drafter = spec(file, strategy="serial", gamma=4, sequences=4)
        with workers(target, drafter) as (verifier, *_), Client(verifier.status().endpoint) as client:
            until(lambda v=verifier: v.status().drafters)
            found = client.ask(*(opening(n, prompt, 80, seed=n) for n in range(4)))
        texts.append([tokens for tokens, _, _ in found.values()])
        stats = [end.stats for _, _, end in found.values()]
        shares.append(sum(one.draft_n_accepted for one in stats) / sum(one.draft_n for one in stats))
    assert texts[0] == texts[1]
    assert shares[0] > 0.3 and shares[1] > (0.9 if kind == "shuffled" else 0.6) * shares[0]
