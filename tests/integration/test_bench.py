"""The benchmarks run, say what they should, and stand on models that compute what they claim."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.builtin_pair import DRAFTER, TARGET

from hetero.bench.quality import held_out
from hetero.bench.speed import read_questions
from hetero.cli import main
from hetero.errors import ConfigError
from hetero.workers.engines.base import Row
from hetero.workers.engines.llama_cpp.engine import LlamaEngine, LlamaSettings
from hetero.workers.engines.octet.library import why_not
from hetero.workers.models.inflate import Size, inflate
from hetero.workers.models.tokenizer import GgufTokenizer

_TRY = """
import sys
from pathlib import Path
from hetero.workers.models.inflate import Size, inflate
from hetero.workers.engines.llama_cpp.engine import LlamaEngine, LlamaSettings
inflate(Path(sys.argv[1]), Path(sys.argv[2]), Size(128, 4, 384), "q8_0")
LlamaEngine(Path(sys.argv[2]), LlamaSettings(threads=1, sequences=1, context=64, chunk=8)).prefill(1, [1, 2, 3])
"""


@pytest.fixture(scope="module")
def quantised(tmp_path_factory) -> None:
    """Skips where llama.cpp's own quantised kernels die: built for instructions (AMX) that this machine announces
    but does not run."""
    file = tmp_path_factory.mktemp("try") / "small.gguf"
    done = subprocess.run([sys.executable, "-c", _TRY, str(DRAFTER), str(file)], check=False, timeout=120)
    if done.returncode == -signal.SIGILL:
        pytest.skip("llama.cpp was built for instructions this machine does not run (SIGILL)")
    assert done.returncode == 0


SMALL, LARGE = Size(128, 4, 384), Size(512, 6, 640)


def logits(path, tokens: list[int]) -> np.ndarray:
    engine = LlamaEngine(path, LlamaSettings(threads=1, sequences=1, context=256, chunk=8))
    engine.prefill(1, tokens[:1])
    found = []
    for n, token in enumerate(tokens[1:]):
        found.append(engine.extend([Row(1, n + 1, n, token)]).logits(0).copy())
        engine.commit(1, n + 1)
    engine.shutdown()
    return np.array(found)


@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_0"])
def test_an_inflated_model_keeps_its_function(tmp_path, kind, quantised):
    same, large = tmp_path / "same.gguf", tmp_path / "large.gguf"
    before = inflate(DRAFTER, same, SMALL, kind)
    after = inflate(DRAFTER, large, LARGE, kind)
    assert after > 9 * before
    tokens = held_out(GgufTokenizer(DRAFTER), 80)
    assert GgufTokenizer(large).encode("def f():") == GgufTokenizer(DRAFTER).encode("def f():")
    a, b = logits(same, tokens), logits(large, tokens)
    assert (a.argmax(axis=1) == b.argmax(axis=1)).all()
    if kind == "f32":
        assert np.array_equal(a, b)  # to the last bit: all factors are powers of two
    else:
        assert np.abs(a - b).max() < 1e-3 * np.abs(a).max()


def test_a_size_below_the_source_is_refused(tmp_path):
    for size in (Size(64, 4, 384), Size(192, 4, 384), Size(128, 3, 384), Size(128, 4, 100)):
        with pytest.raises(ConfigError, match="size"):
            inflate(DRAFTER, tmp_path / "x.gguf", size, "f32")
    with pytest.raises(ConfigError, match="q4_0"):
        inflate(DRAFTER, tmp_path / "x.gguf", LARGE, "q5")


def run(tmp_path, *args: str) -> tuple[str, dict]:
    file = tmp_path / "figures.json"
    found = CliRunner().invoke(main, ["bench", *args, "--json", str(file)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    report = json.loads(file.read_text())
    assert report["machine"] in found.output.replace("\n", " ")
    return found.output, report


@pytest.mark.long
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_bench_engines(tmp_path, monkeypatch, quantised):
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    output, report = run(tmp_path, "engines", "--size", "9M", "--threads", "1", "--repeats", "1")
    engines = {row["engine"]: row for row in report["rows"]}
    assert {"llama_cpp", "octet", "floor"} <= engines.keys()
    assert abs(engines["octet"]["perplexity"] / engines["llama_cpp"]["perplexity"] - 1) < 0.01
    assert engines["floor"]["T(1)"] > 0 and engines["octet"]["T(1)"] > 0
    assert "x llama.cpp's 8 rows" in output.replace("\n", " ")


@pytest.mark.long
def test_bench_drafter(tmp_path, monkeypatch):
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    _, report = run(tmp_path, "drafter", "--draft", "builtin", "--repeats", "1")
    engines = {row["engine"]: row for row in report["rows"]}
    assert {"torch", "llama_cpp"} <= engines.keys()
    assert all(row["T(1)"] > 0 and row["T(32)"] > 0 for row in engines.values())


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_bench_pair(tmp_path, monkeypatch, quantised):
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    args = ["--size", "9M", "--draft", "draft-1M", "--prompts", "1", "--repeats", "1", "--gamma", "3"]
    _, report = run(tmp_path, "pair", *args)
    rows = [row for row in report["rows"] if row["temperature"] == "0.8"]
    serial = [row for row in rows if "serial" in row["contender"]]
    assert all(row["tokens/s"] > 0 for row in rows) and len(serial) == 4
    assert all(row["tokens/forward"] > 1.2 and row["accepted %"] > 10 for row in serial)
    assert all(row["tokens/forward"] == 1 for row in rows if "alone" in row["contender"] or " off" in row["contender"])


@pytest.mark.long
@pytest.mark.timeout(600)
def test_bench_drafts(tmp_path):
    big = tmp_path / "big.gguf"  # beside the toy as it is no drafter pays
    shape = ["--width", "512", "--layers", "12", "--ffn", "1536", "--type", "q8_0"]
    assert CliRunner().invoke(main, ["bench", "inflate", str(TARGET), str(big), *shape]).exit_code == 0
    pair = ["--target", str(big), "--draft", str(DRAFTER), "--prompts", "1", "--temperature", "0"]
    output, report = run(tmp_path, "drafts", *pair)
    rows = report["rows"]
    assert len(rows) % 8 == 0 and {row["prompts"] for row in rows} <= {"edit", "chat", "summary", "extraction"}
    by_name = {name: [row for row in rows if row["drafts from"] == name] for name in (r["drafts from"] for r in rows)}
    assert all(row["x plain"] == row["tokens/forward"] == 1 and row["accepted"] == "" for row in by_name["plain"])
    assert all(row["tokens/forward"] == 1 for row in by_name["llama.cpp"])
    assert any("lookup" in row["accepted"] for row in by_name["lookup"])
    assert any("drafter" in row["accepted"] for row in by_name["drafter + lookup"])
    assert "us for each token" in output


@pytest.mark.long
def test_bench_gateway(tmp_path):
    _, report = run(tmp_path, "gateway", "--idle", "30", "--busy", "20", "--seconds", "3", "--gateways", "2")
    (row,) = report["rows"]
    assert row["lost"] == 0 and row["gateways"] == 2 and row["tokens/s"] > 20 and row["first p99 ms"] > 0
    assert row["us/token"] > 0 and row["KiB/idle stream"] > 1


@pytest.mark.rare
@pytest.mark.long
def test_bench_plans(tmp_path, monkeypatch):
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    few = ["--tokens", "16", "--prompts", "1", "--repeats", "1", "--streams", "1", "--most", "2"]
    output, report = run(tmp_path, "plans", *few)
    assert len(report["rows"]) >= 2 and any(row["plan"].startswith("off") for row in report["rows"])
    assert all(row["foreseen"] > 0 and row["tokens/s"] > 0 and row["perplexity"] > 1 for row in report["rows"])
    assert "% (median)" in output.replace("\n", " ")


def test_bench_regimes(tmp_path):
    _, report = run(
        tmp_path, "regimes", "--tokens", "1000", "--regime", "C", "--strategy", "serial", "--strategy", "off"
    )
    rows = {row["strategy"]: row for row in report["rows"]}
    assert 20 < rows["off"]["% of chain bound"] < rows["serial"]["% of chain bound"] < 100
    assert rows["serial"]["drafter busy %"] > 10 and rows["off"]["drafter busy %"] == 0


@pytest.mark.long
def test_bench_speed_and_its_plot(tmp_path, monkeypatch):
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    prompts = tmp_path / "question.jsonl"
    lines = [
        {"question_id": n, "category": category, "turns": [turn]}
        for n, (category, turn) in enumerate([("coding", "def f(x):"), ("coding", "class A:"), ("math", "import math")])
    ]
    prompts.write_text("\n".join(json.dumps(line) for line in lines))
    plot = tmp_path / "speed.svg"
    args = ["--target", "9M", "--draft", "draft-1M", "--engine", "llama_cpp", "--tokens", "24", "--repeats", "1"]
    args += ["--strategy", "serial", "--strategy", "pearl", "--prompts", str(prompts), "--plot", str(plot)]
    _, report = run(tmp_path, "speed", *args)
    rows = {(row["category"], row["strategy"]): row for row in report["rows"]}
    assert {category for category, _ in rows} == {"coding", "math", "overall"}
    assert rows["overall", "off, llama_cpp"]["x best plain"] == 1.0
    assert rows["overall", "off, llama_cpp"]["forwards"] == 3 * 24
    assert rows["overall", "serial"]["tokens/forward"] > 1.2 and rows["overall", "serial"]["of serial's"] == 1.0
    assert rows["overall", "pearl"]["exposed draft %"] == 0.0
    assert "<svg" in plot.read_text()


@pytest.mark.long
def test_bench_lanes(tmp_path):
    file = tmp_path / "lanes.svg"
    found = CliRunner().invoke(main, ["bench", "lanes", str(file)], catch_exceptions=False)
    assert found.exit_code == 0 and all(name in file.read_text() for name in ("mirror", "ahead", "verifier"))


def test_prompts_that_are_none_are_refused(tmp_path):
    for name, text in (("a.jsonl", '{"turns": []}'), ("b.jsonl", "nonsense"), ("c.txt", "\n\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match="prompts"):
            read_questions(tmp_path / name, GgufTokenizer(DRAFTER), 2)


def test_a_chats_turns_are_kept(tmp_path):
    file = tmp_path / "chat.json"
    asked = ["--target", "9M", "--draft", "draft-1M", "--engine", "llama_cpp", "--turns", "3", "--message", "40"]
    done = CliRunner().invoke(main, ["bench", "chat", *asked, "--answer", "8", "--repeats", "1", "--json", str(file)])
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())["rows"]
    assert [row["evaluated, not kept"] for row in rows] == [row["prompt tokens"] for row in rows]
    assert [row["evaluated, kept"] < 60 for row in rows] == [True] * 3 and rows[2]["prompt tokens"] > 120
