"""docs/benchmarks.md is made from the figures that are committed beside it, and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hetero.bench.page import page
from hetero.errors import ConfigError

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_the_page_is_what_its_figures_say():
    assert (DOCS / "benchmarks.md").read_text() == page(DOCS / "benchmarks")


def test_every_note_has_its_figures_and_all_name_their_machine():
    figures = {file.stem: json.loads(file.read_text()) for file in (DOCS / "benchmarks").glob("*.json")}
    assert len(figures) >= 4 and all("cores" in found["machine"] for found in figures.values())
    notes = {file.stem for file in (DOCS / "benchmarks").glob("*.md")} - {"README"}
    assert notes <= figures.keys()


def test_a_file_that_is_no_report_is_named(tmp_path):
    (tmp_path / "README.md").write_text("# x")
    (tmp_path / "odd.json").write_text('{"rows": []}')
    with pytest.raises(ConfigError, match=r"odd\.json"):
        page(tmp_path)
