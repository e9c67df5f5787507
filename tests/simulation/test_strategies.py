"""What the strategies are known for, read off the traces of simulated pairs; and the aims of the regimes, in short."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest

from hetero.bench import regimes
from hetero.bench.regimes import REGIMES, Regime, best_gamma, chain_bound, flat, tree_bound
from hetero.workers.decoding.policy.strategy import NAMES
from hetero.workers.runtime.trace import FileTrace, start_file
from hetero.workers.simulation.forecast import Play
from hetero.workers.simulation.recorder import Recorder

PAIR = Regime("test", 4e-3, flat(0.060), 1e-3, 8, early=True)


def play(strategy: str, tokens: int = 600, sequences: int = 1, regime: Regime = PAIR) -> tuple[Play, Recorder]:
    events = Recorder()
    return regimes.play(regime, strategy, 5, tokens, seed=1, sequences=sequences, trace=events), events


def windows(events: Recorder) -> list[tuple[float, float, dict]]:
    found = [
        (begin, end, facts) for lane, name, begin, end, facts in events.spans
        if lane == "verifier" and name.startswith("window")
    ]  # fmt: skip
    assert len(found) > 50
    return found


def drafts(events: Recorder) -> list[tuple[float, float]]:
    found = [(begin, end) for lane, name, begin, end, _ in events.spans if lane == "drafter" and "draft" in name]
    assert found
    return found


def overlap(events: Recorder) -> float:
    """Share of the draft time that lies inside windows."""
    inside = total = 0.0
    checked = windows(events)
    for begin, end in drafts(events):
        total += end - begin
        inside += sum(max(0.0, min(end, e) - max(begin, b)) for b, e, _ in checked if e > begin and b < end)
    return inside / total


def test_off_never_waits_and_serial_drafts_between_windows_only():
    _, off = play("off")
    assert all(b[0] == pytest.approx(a[1]) for a, b in pairwise(windows(off)))
    _, serial = play("serial")
    assert overlap(serial) < 0.02
    assert sum(1 for lane, *_ in serial.spans if lane == "wait") > 50


def test_pearl_never_waits_after_a_rejection_and_drafts_while_it_verifies():
    """PEARL: pre-verify (a rejected first token costs no wait) and post-verify (drafting goes on meanwhile)."""
    _, events = play("pearl")
    assert not [lane for lane, *_ in events.spans if lane == "wait"]
    checked = windows(events)
    rejected = [n for n, (_, _, facts) in enumerate(checked[:-1]) if facts["drafted"] and not facts["accepted"]]
    assert len(rejected) > 10
    for n in rejected:
        assert checked[n + 1][0] == pytest.approx(checked[n][1])
    assert overlap(events) > 0.98
    assert max(facts["drafted"] for _, _, facts in checked) > 5  # longer than gamma: as long as speeds allow


def test_mirror_hints_before_the_forward_ends_and_uses_the_branches():
    played, events = play("mirror")
    hints = [at for lane, name, at, _ in events.marks if lane == "verifier" and name == "hint"]
    checked = windows(events)
    assert len(hints) > 50
    for at in hints:
        begin, end, _ = next((b, e, f) for b, e, f in checked if b <= at <= e)
        assert begin < at < end
    landings = played.drafter.landings.counts
    assert landings["complete"] > 20 and landings["hinted"] > 20 and landings["missed"] > 0
    assert overlap(events) > 0.5
    blind, _ = play("mirror", regime=Regime("test", 4e-3, flat(0.060), 1e-3, 8))
    assert blind.drafter.landings.counts["hinted"] == 0 and blind.drafter.landings.counts["complete"] > 10
    assert landings["missed"] < blind.drafter.landings.counts["missed"]


def test_ahead_works_both_devices_all_the_time():
    _, events = play("ahead")
    checked = windows(events)
    span = checked[-1][1] - checked[0][0]
    assert sum(end - begin for begin, end, _ in checked) > 0.8 * span
    assert sum(end - begin for begin, end in drafts(events)) > 0.8 * span


def test_the_verifier_does_not_wait_for_one_sequence_while_another_is_ready():
    _, alone = play("serial", tokens=300)
    _, events = play("serial", tokens=300, sequences=2)
    checked = windows(events)
    seqs = {facts["seq"] for _, _, facts in checked}
    assert len(seqs) == 2

    def busy(found):  # sequences may share a forward
        forwards = {(begin, end) for begin, end, _ in found}
        return sum(end - begin for begin, end in forwards) / (found[-1][1] - found[0][0])

    assert busy(checked) > busy(windows(alone)) + 0.05


def test_ahead_shares_every_forward_among_its_sequences():
    """A sequence that would wait for more draft joins the forward that starts for another."""
    one, _ = play("ahead", tokens=300)
    two, events = play("ahead", tokens=300, sequences=2)
    begun = Counter(begin for begin, *_ in windows(events))
    both = min(story.stats.forwards_n for story in two.pair.client.finished)
    assert sum(count == 2 for count in begun.values()) > 0.95 * both
    assert len(begun) < 1.5 * one.pair.client.finished[0].stats.forwards_n  # for twice the tokens


@pytest.mark.parametrize("strategy", NAMES)
def test_the_simulator_counts_every_token_once(strategy):
    played, _ = play(strategy, tokens=300)
    assert sum(count for _, count in played.pair.client.times) == 300
    assert played.pair.client.finished[0].stats.predicted_n == 300


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.thorough
def test_regimes_in_short():
    """2000 tokens a cell: a tenth of slack to the aims, which `hetero bench regimes` checks with 50,000."""
    aims = {"A GPU/CPU 4/150 ms, link 0.1 ms, B=8": 80, "B GPU/GPU 2.5/20 ms, link 0.03 ms, B=8": 65}
    for regime in REGIMES:
        if regime.name in aims:
            rates = {
                strategy: regimes.play(regime, strategy, best_gamma(regime), 2000, 1).result().rate
                for strategy in ("serial", "ahead")
            }
            assert 100 * rates["ahead"] / chain_bound(regime) > aims[regime.name]
            assert rates["ahead"] > 1.1 * rates["serial"]
            assert rates["ahead"] < tree_bound(regime)


@pytest.mark.long
def test_speculation_that_cannot_pay_is_switched_off():
    slow = next(regime for regime in REGIMES if regime.name.startswith("D"))
    found = regimes.play(slow, "ahead", 4, 700, 1).result()
    assert found.plain > 0.5 and found.rate > 0.95 / slow.verify(1)


def test_a_trace_file_is_what_viewers_read(tmp_path):
    file = tmp_path / "trace.json"
    start_file(file)
    for _ in range(2):  # two workers, one file
        trace = FileTrace(file)
        trace.span("verifier", "window", 1.0, 1.5, seq=3)
        trace.mark("verifier", "commit", 1.5)
    events = json.loads(file.read_text().rstrip().rstrip(",") + "]")
    assert [e["ph"] for e in events].count("X") == 2 and all("pid" in e for e in events)
    spans = [e for e in events if e["ph"] == "X"]
    assert spans[0]["ts"] == 1e6 and spans[0]["dur"] == 5e5 and spans[0]["args"] == {"seq": 3}
