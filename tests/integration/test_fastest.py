"""The default engine of a CPU: each that runs the model is tried, the fastest wins, and is not tried again."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from helpers.builtin_pair import DRAFTER

from hetero.cli import main
from hetero.config import make_config
from hetero.placement.device import Device, Inventory
from hetero.planning.fastest import Fastest
from hetero.planning.planner import Planner
from hetero.workers.engines.octet.library import why_not
from hetero.workers.models.model import read_model

CPU = Device("cpu", (0,))


@pytest.fixture
def said(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    return []


def fastest(said: list[str], free: int = 1 << 40) -> Fastest:
    return Fastest(free, "as-is", "f16", said.append)


@pytest.mark.long
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_the_fastest_engine_is_found_once(said, tmp_path):
    model = read_model(DRAFTER)
    found = fastest(said)(model, CPU, 4)
    (file,) = (tmp_path / "engines").glob("*.json")
    times = json.loads(file.read_text())
    assert {"octet", "llama_cpp"} <= times.keys()
    again = fastest(said)
    assert again(model, CPU, 4) is again(model, CPU, 4) and len(said) == 3  # told once a start
    said.pop()
    assert found.name == min(times, key=lambda name: times[name]["4"])
    assert len(said) == 2 and "measuring" in said[0] and said[1].startswith(f"{found.name} runs drafter on cpu:0")
    assert fastest(said)(model, CPU, 4).name == found.name
    assert len(said) == 3 and "measuring" not in said[2]  # it is known now
    times["torch"]["1"] = 1e-9
    file.write_text(json.dumps(times))
    assert fastest(said)(model, CPU, 1).name == "torch"  # what was measured decides, not a name
    file.write_text('{"octet": {"1": "no"}}')
    assert fastest(said)(model, CPU, 4).name in times and "measuring" in said[-2]  # damaged: anew


def test_what_dies_does_not_take_part(said, monkeypatch):
    monkeypatch.setattr(Fastest, "_tried", lambda self, entry, model, device: None)
    assert fastest(said)(read_model(DRAFTER), CPU, 4).name == "llama_cpp"


def test_verdicts_are_only_kept_where_all_came_to_an_end(said, tmp_path, monkeypatch):
    times = {"1": 1.0, "4": 2.0, "8": 3.0}
    for dies, files in ((None, 0), ({}, 1)):
        monkeypatch.setattr(Fastest, "_tried", lambda self, entry, *_, d=dies: d if entry.name == "octet" else times)
        assert fastest(said)(read_model(DRAFTER), CPU, 4).name != "octet"
        assert len(list((tmp_path / "engines").glob("*.json"))) == files


def test_who_does_not_measure_takes_what_is_known(said, tmp_path):
    quiet = Fastest(1 << 40, "as-is", "f16", said.append, measure=False)
    assert quiet(read_model(DRAFTER), CPU, 4).name == "llama_cpp" and not said


def test_a_model_that_hardly_fits_is_not_tried(said):
    assert fastest(said, free=1)(read_model(DRAFTER), CPU, 4).name == "llama_cpp" and not said


def test_a_plan_takes_it_where_nobody_named_one(said):
    asked = []

    def choose(model, device, rows, features):
        asked.append((model.name, str(device), rows))
        return fastest(said, free=1)(model, device, rows, features)

    here = Inventory(cores=(0, 1), memory=1 << 36, gpus=())
    plan = Planner(make_config({"target": "builtin"}), here, choose).plan()
    assert [rows for _, _, rows in asked] == [4, 1] and plan.target.spec.engine == "llama_cpp"
    asked.clear()
    Planner(make_config({"target_engine": "torch", "draft_engine": "torch"}), here, choose).plan()
    assert not asked


def test_the_cache_is_listed_and_cleared(said, tmp_path):
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "a.json").write_text("{}" * 1000)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "b").write_text("x")
    found = CliRunner().invoke(main, ["cache"]).output
    assert "engines" in found and "strange" in found
    wrong = CliRunner().invoke(main, ["cache", "--clear", "strange"])
    assert wrong.exit_code and "strange" in wrong.output + str(wrong.exception)
    found = CliRunner().invoke(main, ["cache", "--clear", "all"]).output
    assert "engines" not in found and (tmp_path / "strange" / "b").exists()
