"""The one rule, as a property: whatever the drafter, the links and the restarts do, the tokens are the target's."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from helpers.simulated_world import END, PIECES, TARGET, Faults, World, prompts, reference
from llguidance import LLMatcher
from scipy import stats

from hetero.workers.decoding.policy.choice import Choice, Record
from hetero.workers.decoding.policy.strategy import NAMES
from hetero.workers.engines.table import TableEngine, TableSpec
from hetero.workers.errors import EngineError
from hetero.workers.wire.messages import Failed, Finished, Thinking

SCHEDULES = range(3)  # seeds
GRAMMAR = LLMatcher.grammar_from_regex("([a-e]{2}z?){2,9}")


def check(world: World) -> None:
    stories = world.stories
    for story in stories:
        assert isinstance(story.end, Finished), story.end
        assert story.tokens == reference(story.opening)
        ends = {*PIECES.ends, *story.opening.stop_ids}
        text = b"".join(PIECES.pieces[t] for t in story.tokens if t not in ends).decode()
        assert story.text == text
        if story.opening.prompt_logprobs >= 0:
            assert sorted(story.prompt) == list(range(1, len(story.opening.prompt)))
            assert [story.prompt[n].token for n in sorted(story.prompt)] == story.opening.prompt[1:]
        stats = story.end.stats
        assert stats.predicted_n == len(story.tokens)
        assert stats.draft_n_accepted <= stats.draft_n and stats.draft_n_accepted < stats.predicted_n
    world.settle()
    assert not [error for error in world.errors if "node" in error]  # the books on nodes agree with the engine's
    for name, node in world.pair.workers.items():
        assert node.machine.idle, name
        assert world.engine(name).used_cells == 0, name
        assert world.engine(name).saved_prefixes == node.machine.prefixes.facts[0], name


def requests(world: World, seed: int) -> None:
    rng = random.Random(seed)
    asked = prompts(seed, 5)
    asked[3] = asked[0] + asked[3]  # they share a beginning, as the turns of a chat do
    asked[4] = asked[3] + asked[4]
    for prompt in asked:
        world.ask(
            prompt,
            max_tokens=rng.randint(1, 60),
            temperature=rng.choice([0.0, 0.8, 1.0]),
            seed=rng.randrange(2**40),
            at=rng.uniform(0, 0.5),
            top_k=rng.choice([0, 0, 5]),
            top_p=rng.choice([1.0, 1.0, 0.9]),
            presence=rng.choice([0.0, 0.0, 1.0]),
            frequency=rng.choice([0.0, 0.0, 0.5]),
            bias=rng.choice([[], [], [(3, 2.0), (END, -100.0)]]),
            logprobs=rng.choice([-1, 3]),
            grammar=rng.choice(["", "", GRAMMAR]),
            plain=rng.random() < 0.1,
            repetition=rng.choice([1.0, 1.0, 1.3]),
            repetition_last=rng.choice([0, 4]),
            min_tokens=rng.choice([0, 0, 9]),
            asked={
                "stop_ids": rng.choice([[], [], [7]]),
                "ignore_end": rng.random() < 0.2,
                "thinking": rng.choice([None, None, thinking(rng)]),
                "prompt_logprobs": rng.choice([-1, -1, 2]),
                "owner": rng.choice(["", "a", "b"]),
                "prediction": rng.choice([[], [], prompt, list(range(40))]),
            },
        )


def thinking(rng: random.Random) -> Thinking:
    """Between token 5 and the text "de", whose tokens are 3 and 4."""
    return Thinking("de", 5, rng.random() < 0.5, rng.choice([-1, 0, 6]), [3, 4])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "off"])
def test_a_drafter_of_a_smaller_context_drafts_from_the_last_tokens(name, monkeypatch):
    """Before, its prompts were sent again with every ping, and dropped."""
    monkeypatch.setattr(Record, "choose", lambda self, drafters: Choice(frozenset(drafters), False))
    world = World(3, name, draft_context=24, cached=200)
    for seed, length in enumerate((5, 20, 24, 90)):
        world.ask(prompts(seed, 1)[0][:1] * length, max_tokens=60, seed=seed)
    world.play()
    check(world)
    for story in world.stories:
        stats = story.end.stats
        assert stats.draft_n > 5 and stats.alone_n == 0
    assert world.pair[b"drafter-0"].machine.dropped == 0


KINDS = {
    "perfect": (1.0, Faults()),
    "good": (0.8, Faults()),
    "random": (0.0, Faults()),
    "absent": (None, Faults()),
    "adversarial": (0.8, Faults(adversary=True)),
    "lossy": (0.8, Faults(lose=0.2, repeat=0.2, jitter=0.05)),
    "slow": (0.9, Faults(delay=0.3)),
    "failing": (0.9, Faults(engine=0.2)),
    "crashing": (0.9, Faults(drafter_crash=0.4)),
    "verifier crashing": (0.9, Faults(verifier_crash=1.0)),
    "guesses do not last": (0.9, Faults(guesses=True, jitter=0.01)),
    "revised": (0.8, Faults(revised=0.3)),
    "everything": (
        0.9,
        Faults(
            lose=0.1,
            repeat=0.1,
            jitter=0.02,
            engine=0.1,
            drafter_crash=0.7,
            verifier_crash=1.5,
            adversary=True,
            guesses=True,
            revised=0.7,
        ),
    ),
}


QUICK = ("absent", "everything")  # test_schedules.py has hundreds of the others' mixtures


@pytest.mark.parametrize("strategy", list(NAMES))
@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS]
)
def test_tokens_do_not_depend_on_the_drafter(kind: str, strategy: str) -> None:
    play_all(kind, strategy, SCHEDULES)


def play_all(kind: str, strategy: str, seeds: range) -> None:
    """Play a schedule for each seed; each must end in the target's own tokens."""
    agreement, faults = KINDS[kind]
    drafted = accepted = 0
    for seed in seeds:
        rng = random.Random(seed)
        world = World(
            seed,
            strategy,
            gamma=rng.randint(1, 8),
            agreement=agreement,
            faults=faults,
            draft_s=rng.choice([0.0001, 0.003, 0.05]),
            cached=rng.choice([0, 150, 2000]),
            past=rng.choice([None, 0, 40, 5000]),
        )
        requests(world, seed)
        world.play()
        check(world)
        drafted += world.pair.drafted
        accepted += sum(s.end.stats.draft_n_accepted for s in world.stories)
    if strategy != "off" and agreement is not None:
        assert drafted > 0
        if agreement >= 0.8 and kind not in ("slow", "everything"):  # of which little may come through
            assert accepted > 0


def test_a_perfect_drafter_is_accepted_whole() -> None:
    world = World(1, "serial", gamma=4, agreement=1.0)
    story = world.ask([1, 2, 3], max_tokens=41, temperature=0.9)
    world.play()
    stats = story.end.stats
    assert stats.draft_n_accepted == stats.draft_n > 25
    assert stats.forwards_n <= 12


@pytest.mark.thorough
def test_cancelled_at_any_time_nothing_stays() -> None:
    for seed in range(25):
        rng = random.Random(seed)
        world = World(seed, rng.choice(list(NAMES)), faults=Faults(jitter=0.002))
        kept = world.ask([5, 6, 7], max_tokens=30)
        for prompt in prompts(seed, 4):
            world.cancel(world.ask(prompt, max_tokens=60, at=rng.uniform(0, 0.3)), at=rng.uniform(0, 1.0))
        world.play()
        assert kept.tokens == reference(kept.opening)
        world.settle()
        for name, node in world.pair.workers.items():
            assert node.machine.idle and world.engine(name).used_cells == 0


def test_not_finite_logits_fail_one_request_only() -> None:
    poison = 3

    def fault(number: int, tokens: list[int]) -> str | None:
        return "nan" if tokens[:2] == [poison, poison] else None

    world = World(3, "ahead", target=replace(TARGET, fault=fault))
    bad = world.ask([poison, poison], max_tokens=20)
    good = world.ask([4, 5, 6], max_tokens=20)
    world.play()
    assert isinstance(bad.end, Failed) and bad.end.code == "not_finite"
    assert good.tokens == reference(good.opening)


def test_an_engine_error_fails_the_sequence_at_fault_only() -> None:
    asked = [([9, 9], 5), ([4, 5, 6], 1), ([4, 5, 7], 2)]
    outputs = []
    for prompt, seed in asked:
        outputs.append(reference(World(4, "off", agreement=None).ask(prompt, max_tokens=20, seed=seed).opening))
    culprit = next(t for t in outputs[0][:-1] if t not in {*outputs[1], *outputs[2], 4, 5, 6, 7, 9})

    def fault(number: int, tokens: list[int]) -> str | None:
        if culprit in tokens:
            raise EngineError("scripted")
        return None

    world = World(4, "off", agreement=None, target=replace(TARGET, fault=fault))
    stories = [world.ask(prompt, max_tokens=20, seed=seed) for prompt, seed in asked]
    world.play()
    assert isinstance(stories[0].end, Failed) and stories[0].end.code == "engine_error"
    assert stories[0].tokens == outputs[0][: outputs[0].index(culprit) + 1]
    assert [story.tokens for story in stories[1:]] == outputs[1:]


def test_a_stop_string_ends_the_text_across_tokens_and_never_leaks() -> None:
    for seed in range(15):
        world = World(seed, "ahead", agreement=0.9)
        free = world.ask([1, 2, 3], max_tokens=60, seed=seed)
        world.play()
        if len(free.text) < 12:
            continue
        stop = free.text[5:8]
        again = World(seed, "serial", agreement=0.9)
        story = again.ask([1, 2, 3], max_tokens=60, seed=seed, stop=(stop, "zzzzzz"))
        again.play()
        assert story.text == free.text[: free.text.index(stop)]
        assert story.end.reason == "stop"
        assert story.tokens == free.tokens[: len(story.tokens)]


@pytest.mark.long
@pytest.mark.thorough
def test_first_and_later_tokens_follow_the_target_through_windows_and_drafts() -> None:
    """Chi-square over 1500 seeds, false-alarm probability 1e-4 each; a planted bias must fail it."""
    target = TableSpec(vocabulary=12, context=64, seed=5, sharpness=1.0, chunk=16, rows=64, sequences=64)
    draws = 1500
    world = World(0, "serial", gamma=3, agreement=0.9, target=target, target_s=0.002, draft_s=0.0001)
    for seed in range(draws):
        world.ask([1, 2, 3], max_tokens=4, temperature=1.0, seed=seed, at=seed * 0.0005)
    world.play()
    stories = world.stories
    assert sum(story.end.stats.draft_n_accepted for story in stories) > draws / 10

    def logits(tokens: list[int]) -> np.ndarray:
        engine = TableEngine(target)
        return engine.prefill(1, tokens).logits(0).astype(np.float64)

    def softmax(x: np.ndarray) -> np.ndarray:
        p = np.exp(x - x.max())
        return p / p.sum()

    first = softmax(logits([1, 2, 3]))
    second = sum(first[t] * softmax(logits([1, 2, 3, t])) for t in range(12))
    for index, expected in ((0, first), (1, second)):
        found = np.bincount([story.tokens[index] for story in stories], minlength=12)
        assert stats.chisquare(found, expected * draws).pvalue > 1e-4
        best = int(expected.argmax())
        planted = [best if n % 8 == 0 else story.tokens[index] for n, story in enumerate(stories)]
        biased = np.bincount(planted, minlength=12)
        assert stats.chisquare(biased, expected * draws).pvalue < 1e-4
