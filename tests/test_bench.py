"""The benchmarks run, say what they should, and stand on models that compute what they claim."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from pair import DRAFTER

from hetero.bench.inflate import Size, inflate
from hetero.bench.quality import held_out
from hetero.cli import main
from hetero.errors import ConfigError
from workers.engines.base import Row
from workers.engines.llama_cpp import LlamaEngine, LlamaSettings
from workers.engines.octet.library import why_not
from workers.tokenizer import GgufTokenizer

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
def test_an_inflated_model_keeps_its_function(tmp_path, kind):
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


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_bench_engines(tmp_path, monkeypatch):
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    output, report = run(tmp_path, "engines", "--size", "9M", "--threads", "1", "--repeats", "1")
    engines = {row["engine"]: row for row in report["rows"]}
    assert {"llama.cpp Q8_0", "octet", "octet4", "floor of 8 bits"} <= engines.keys()
    assert abs(engines["octet"]["perplexity"] / engines["llama.cpp BF16"]["perplexity"] - 1) < 0.01
    assert 0 < engines["floor of 8 bits"]["T(1)"] < engines["octet"]["T(1)"]
    assert "x llama.cpp's best 8 rows" in output.replace("\n", " ")


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_bench_pair(tmp_path, monkeypatch):
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path))
    args = ["--size", "9M", "--draft", "draft-1M", "--prompts", "1", "--repeats", "1", "--gamma", "3"]
    _, report = run(tmp_path, "pair", *args)
    rows = [row for row in report["rows"] if row["temperature"] == "0.8"]
    serial = [row for row in rows if "serial" in row["contender"]]
    assert all(row["tokens/s"] > 0 for row in rows) and len(serial) == 4
    assert all(row["tokens/forward"] > 1.2 and row["accepted %"] > 10 for row in serial)
    assert all(row["tokens/forward"] == 1 for row in rows if "alone" in row["contender"] or " off" in row["contender"])
