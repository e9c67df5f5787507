"""cluster.yaml says of itself what is true."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

FILE = Path(__file__).parent.parent.parent / "cluster.yaml"


def starts() -> dict[str, str]:
    found = yaml.safe_load(FILE.read_text())
    return {role: " ".join(found[f"{role}_start_ray_commands"][1].split()) for role in ("head", "worker")}


def test_both_machines_are_started_with_the_token_and_the_autoscaler_that_starts_the_second():
    for command in starts().values():
        exported = command.partition("&& ulimit")[0]
        assert "RAY_AUTH_MODE=token" in exported and "RAY_enable_autoscaler_v2=0" in exported


def test_the_firewalls_list_is_that_of_the_commands():
    text = FILE.read_text()
    back, forth = (
        re.search(rf"from the {way}: +(.*)", text)[1] for way in ("second PC to the first", "first PC to the second")
    )
    for command in starts().values():
        ports = dict(re.findall(r"--([a-z-]+port)=(\d+)", command))
        assert ports["node-manager-port"] in forth
        assert f"{ports['min-worker-port']}-{ports['max-worker-port']}" in forth
    assert re.search(r"--port=(\d+)", starts()["head"])[1] in back
    assert re.search(r"--worker-ports ([\d-]+)", text)[1] in back
