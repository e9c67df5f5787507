"""The folder for Ray's sockets: short, ours alone, gone with us or with the next start."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from hetero.cluster import scratch
from hetero.cluster.scratch import Scratch, left_folders, sweep
from hetero.errors import ClusterError


@pytest.fixture
def place(monkeypatch, tmp_path_factory):
    made = tmp_path_factory.mktemp("s")
    monkeypatch.setattr(scratch, "_PLACES", (str(made),))
    monkeypatch.setattr(scratch, "_LONGEST", 200)
    return made


def test_it_is_short_whatever_tmpdir_is(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "x" * 200)
    made = Scratch()
    assert len(str(made.path)) < 40 and made.path.is_dir()
    made.remove()
    made.remove()
    assert not made.path.exists()


def test_no_place_is_one_line(monkeypatch):
    monkeypatch.setattr(scratch, "_places", lambda: ["/proc/nowhere"])
    with pytest.raises(ClusterError, match="set TMPDIR"):
        Scratch()


def test_what_a_killed_process_left_goes_with_the_next_start(place):
    code = (
        "import os, sys, time; from hetero.cluster import scratch; scratch._PLACES = (sys.argv[1],); "
        "scratch._LONGEST = 200; made = scratch.Scratch(); print(made.path, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True) as killed:
        left = killed.stdout.readline().strip()
        sweep(str(place))
        assert os.path.isdir(left)  # its owner lives
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", left])
        killed.kill()
    made = Scratch()
    assert not os.path.exists(left)
    assert helper.wait(10) is not None and not psutil.pid_exists(helper.pid)  # who worked there was ended
    assert left_folders(str(place)) == [made.path]
    made.remove()


def test_folders_of_others_are_left_alone(place, tmp_path):
    (place / "hetero-mine").mkdir()  # no lock: not one of these
    (place / "hetero-link").symlink_to(tmp_path)
    (tmp_path / "lock").touch()
    sweep(str(place))
    assert (place / "hetero-mine").is_dir() and (tmp_path / "lock").exists()
