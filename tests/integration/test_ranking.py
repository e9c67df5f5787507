"""All plans of a pair on this machine: foreseen from what was measured, the fastest first, the user's choices kept."""

from __future__ import annotations

import json

import msgspec
import pytest
from click.testing import CliRunner
from helpers.builtin_pair import TARGET
from helpers.foreseen import TEXT, ranked, trial

from hetero.cli import main
from hetero.cluster.inventory import take_inventory
from hetero.config import make_config
from hetero.errors import HeteroError
from hetero.placement.device import Gpu, Inventory
from hetero.placement.topology import Core, Topology
from hetero.planning.ranking import Ranker, Ranking
from hetero.planning.table import rows_of, verdict
from hetero.planning.trials import running, tried
from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.runtime.trial import Request


def names(ranking: Ranking) -> list[str]:
    return [str(entry.candidate) for entry in ranking.entries]


@pytest.mark.long
def test_a_quick_drafter_that_agrees_works_ahead_and_a_slow_one_is_left_out(monkeypatch):
    good = ranked(monkeypatch, trial(0.05, 0.002), trial(0.004, 0.0005, 0.8))
    assert good.entries[0].candidate.strategy == "ahead" and good.agreement.alpha == 0.8
    plain = next(entry for entry in good.entries if entry.candidate.drafter is None)
    assert good.entries[0].rate > 1.8 * plain.rate and plain.rate == pytest.approx(1 / 0.0504, rel=0.02)
    assert "x plain decoding" in verdict(good)[1]
    for target, drafter in (
        (trial(0.05, 0.05), trial(0.004, 0.0005, 0.8)),  # a window costs as much as its rows alone
        (trial(0.05, 0.002), trial(0.004, 0.0005, 0.0)),  # no guess is right
        (trial(0.05, 0.002), trial(0.2, 0.1, 0.8)),  # drafts come too late
    ):
        bad = ranked(monkeypatch, target, drafter)
        assert bad.entries[0].rate < 1.1 * max(e.rate for e in bad.entries if e.candidate.drafter is None)


def test_plans_are_of_one_verifier():
    config = make_config({"verifiers": 2, "target_device": "cpu:0-1"})
    with pytest.raises(HeteroError, match="verifiers: plans are foreseen for one"):
        Ranker(config, take_inventory(), None, print)


def test_what_the_user_names_is_kept(monkeypatch):
    pair = trial(0.05, 0.002), trial(0.004, 0.0005, 0.8)
    serial = ranked(monkeypatch, *pair, strategy="serial", gamma=3)
    assert {(e.candidate.strategy, e.candidate.gamma) for e in serial.entries} == {("serial", 3)}
    placed = ranked(monkeypatch, *pair, target_device="cpu:1", draft_device="cpu:0")
    assert {str(e.candidate.target) for e in placed.entries} == {"cpu:1"}
    assert {str(e.candidate.drafter) for e in placed.entries} == {"cpu:0", "None"}
    none = ranked(monkeypatch, *pair, draft="none")
    assert names(none) == ["off on cpu:0-1"]
    exact = ranked(monkeypatch, *pair, exact=True)
    assert all(entry.plan.target.spec.exact for entry in exact.entries)


def test_every_device_is_considered_and_what_cannot_be_says_why(monkeypatch):
    cores = tuple(Core(n, n // 2 * 2 if n < 8 else n, 0, 1.0 if n < 8 else 0.5) for n in range(12))
    hybrid = Inventory(tuple(range(12)), 64 << 30, (), Topology(cores))
    found = names(ranked(monkeypatch, trial(0.05, 0.002), trial(0.004, 0.0005, 0.8), hybrid))
    assert "ahead: target cpu:0,2,4,6, drafter cpu:8-11" in found and "ahead: target cpu:0,2,4, drafter cpu:6" in found
    # A PC with a GPU and libraries built for CPUs alone: a plan for the CPU, and the line that would enable the GPU.
    card = Inventory((0, 1), 64 << 30, (Gpu("cuda", 0, "a card", 8 << 30),))
    ranking = ranked(monkeypatch, trial(0.05, 0.002), trial(0.004, 0.0005, 0.8), card)
    assert ranking.entries and all(entry.candidate.target.is_cpu for entry in ranking.entries)
    reasons = dict(ranking.rejected)
    assert any("GGML_CUDA" in why or "use torch" in why for why in reasons.values()), reasons
    rows = rows_of(ranking)
    assert json.dumps(rows) and rows[0]["tokens_per_second"] >= rows[-1]["tokens_per_second"]


def test_what_does_not_fit_is_not_proposed(monkeypatch):
    with pytest.raises(HeteroError, match="GiB"):
        ranked(monkeypatch, trial(0.05, 0.002), trial(0.004, 0.0005, 0.8), Inventory((0, 1), 1 << 20))


@pytest.mark.long
def test_an_engine_is_tried_alone_and_beside_another():
    spec = WorkerSpec("drafter", str(TARGET), "llama_cpp", "ahead", 0, cores=[0], sequences=1, context=512)
    found = tried(Request(spec, [1, 4], TEXT))
    assert found is not None and set(found.forward) == {1, 4} and found.prefill > 0 and found.memory > 0
    assert len(found.candidates) == len(TEXT) - 1 and len(found.candidates[0][0]) > 1 and not found.samples
    with running(Request(spec, [1], company="beside")) as partner:
        assert partner.begun
        beside = tried(Request(spec, [1], thorough=False, company="beside"))
    with running(Request(spec, [1], company="turns")) as partner:
        turns = tried(Request(spec, [1, 2], thorough=False, company="turns"), partner)
    assert turns is not None and set(turns.forward) == {1, 2} and not turns.candidates
    gone = msgspec.structs.replace(spec, model="/nowhere.gguf")
    with running(Request(gone, [1])) as partner:
        assert not partner.begun
    assert beside is not None and beside.forward[1] > 0 and not beside.candidates
    assert tried(Request(WorkerSpec("target", str(TARGET.parent), "torch", "off", 0, context=64), [1])) is None


@pytest.mark.long
def test_plans_of_the_built_in_pair_are_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    asked = ["plan", "--json", "--parallel", "2", "--context", "1024", "--target-engine", "llama_cpp",
             "--draft-engine", "llama_cpp"]  # fmt: skip
    first = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert first.exit_code == 0 and "measuring the target, builtin, on cpu" in first.stderr
    found = json.loads(first.stdout)
    assert {"off", "serial", "pearl", "ahead"} <= {plan["strategy"] for plan in found["plans"]}
    assert 0.3 < found["agreement"]["alpha"] < 0.95 and not found["agreement"]["assumed"]
    again = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert "measuring" not in again.stderr and json.loads(again.stdout) == found


def test_a_dry_run_tries_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    done = CliRunner().invoke(main, ["plan", "--dry-run", "--json", "--parallel", "1"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["agreement"]["assumed"] and {"off", "ahead"} <= {plan["strategy"] for plan in found["plans"]}
    assert all(plan["tokens_per_second"] > 0 for plan in found["plans"]) and "measuring" not in done.stderr


@pytest.mark.long
def test_auto_takes_the_best_and_the_text_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    common = ["generate", "def f(x):", "--seed", "3", "-n", "24", "--target-engine", "octet", "--draft-engine", "octet"]
    texts = {}
    for strategy in ("auto", "serial"):
        done = CliRunner().invoke(main, [*common, "--strategy", strategy, "--context", "512"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        texts[strategy] = done.stdout
        assert ("tokens/s foreseen" in done.stderr) == (strategy == "auto")
    assert texts["auto"] == texts["serial"]
    refused = CliRunner().invoke(main, [*common, "--strategy", "auto", "--cluster"])
    assert refused.exit_code == 1 and "auto measures one machine" in refused.output
