"""Engines stand in one registry: nothing else knows them by name, and what users read comes from it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from click.testing import CliRunner

import hetero
from hetero.cli import main
from hetero.placement.errors import ConfigError
from hetero.placement.memory import ModelShape
from hetero.workers.engines.registry import ENGINES, default_engine, find_engine
from hetero.workers.models.forms import GGUF, HEADS, SAFETENSORS

ROOT = Path(hetero.__file__).parent.parent
SHAPE = ModelShape(weights=700, parameters=1000, layers=2, kv_heads=2, head_dim=8, vocabulary=50)


def test_no_other_module_compares_engine_names():
    """Five modules did. Benchmarks may say which engines they set side by side."""
    for folder in ("hetero", "workers", "placement"):
        for path in (ROOT / folder).rglob("*.py"):
            where = str(path.relative_to(ROOT))
            if where.startswith(
                ("hetero/bench/", "workers/engines/registry.py", "hetero/workers/", "hetero/placement/")
            ):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Compare):
                    sides = [node.left, *node.comparators]
                    sides += [
                        e for side in sides if isinstance(side, ast.Tuple | ast.List | ast.Set) for e in side.elts
                    ]
                    names = {side.value for side in sides if isinstance(side, ast.Constant)} & ENGINES.keys()
                    assert not names, f"{where}:{node.lineno} compares with {names}"


def test_help_and_errors_name_every_engine():
    text = " ".join(CliRunner().invoke(main, ["serve", "--help"]).output.split())
    for name in ENGINES:
        assert name in text
        with pytest.raises(ConfigError, match=name):
            find_engine("vllm", "target_engine")


def test_defaults_read_the_format_and_run_on_the_device():
    assert default_engine(GGUF, "cpu").name == "llama_cpp"
    assert default_engine(SAFETENSORS, "cpu").name == "torch"
    assert default_engine(GGUF, "cuda").name in ("llama_cpp", "torch")
    for entry in ENGINES.values():
        assert set(entry.formats) <= {GGUF, SAFETENSORS, *HEADS} and entry.summary
        assert entry.weight_bytes(SHAPE, "float32") > 0 and entry.kv_width("bfloat16", "f16") == 2
        assert all(1 < entry.kv_width("bfloat16", kept) <= 2 for kept in entry.kv_caches)
        if not entry.gpus:
            assert "CPUs only" in entry.objection("cuda", here=False)
    assert find_engine("llama_cpp").objection("cuda", here=False) is None  # another machine's affair


def test_what_an_engine_takes():
    assert find_engine("llama_cpp").weight_bytes(SHAPE, "float32") == 700  # as on disk
    assert find_engine("torch").weight_bytes(SHAPE, "float32") == 4000
    assert find_engine("torch").weight_bytes(SHAPE, "bfloat16") == 2000


def test_the_engine_of_another_machines_gpu_is_one_that_this_installation_could_use(monkeypatch):
    """The stock CPU build of llama.cpp beside a CUDA torch: a drafter on the other PC's GPU runs on torch."""
    monkeypatch.setattr("hetero.workers.engines.accelerators.llama_kinds", lambda: frozenset())
    monkeypatch.setattr("hetero.workers.engines.accelerators.torch_kinds", lambda: frozenset({"cuda"}))
    assert default_engine(GGUF, "cuda").name == "torch"
