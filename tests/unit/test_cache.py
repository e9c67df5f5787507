"""Things made in the user's cache: whole or not at all, and a full disk by its name."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import pytest

from hetero.workers.errors import ModelError
from hetero.workers.models import cache
from hetero.workers.models.cache import made_aside


def test_it_is_there_at_the_end_or_not_at_all(tmp_path):
    with made_aside(tmp_path / "a" / "whole") as aside:
        (aside / "x").write_text("1")
        assert not (tmp_path / "a" / "whole").exists()
    assert os.listdir(tmp_path / "a") == ["whole"]
    with pytest.raises(ZeroDivisionError), made_aside(tmp_path / "a" / "half") as aside:
        (aside / "x").write_text("1")
        raise ZeroDivisionError
    assert os.listdir(tmp_path / "a") == ["whole"]


def test_two_at_once_make_one(tmp_path):
    with made_aside(tmp_path / "it") as one, made_aside(tmp_path / "it") as two:
        (one / "x").write_text("1")
        (two / "x").write_text("1")
    assert os.listdir(tmp_path) == ["it"] and (tmp_path / "it" / "x").read_text() == "1"


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    """numpy tells of it by "65536 requested and 40832 written" alone."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 << 20))
    with pytest.raises(ModelError) as error, made_aside(tmp_path / "it"):
        raise OSError("65536 requested and 40832 written")
    assert str(tmp_path) in str(error.value) and "its disk is full (3 MiB left)" in str(error.value)
    assert "HETERO_CACHE" in str(error.value) and not os.listdir(tmp_path)


def test_a_cache_that_cannot_be_written_to_is_named():
    with pytest.raises(ModelError, match="cache /proc/x"), made_aside(cache.Path("/proc/x/it")):
        pass


def test_what_a_killed_process_left_is_swept_after_a_day(tmp_path):
    for name, age in ((".making-old", 2e5), (".making-new", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (age and 1, age and 1) if age else None)
    with made_aside(tmp_path / "it"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".making-new", "it"]
