"""cluster.yaml says of itself what is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from hetero.cluster import raynode
from hetero.cluster.cluster_file import read_cluster_file
from hetero.errors import ConfigError
from hetero.planning.planner import _WORKER_PORTS

FILE = Path(__file__).parent.parent.parent / "cluster.yaml"
TEXT = FILE.read_text()


def head() -> str:
    return " ".join(yaml.safe_load(TEXT)["head_start_ray_commands"][1].split())


def test_the_first_pc_asks_for_the_token_and_has_the_autoscaler_that_starts_the_second():
    exported = head().partition("ray start")[0]
    for setting in ("RAY_AUTH_MODE=token", "RAY_enable_autoscaler_v2=0", "RAY_memory_monitor_refresh_ms=0"):
        assert setting in exported
    assert "get-auth-token --generate" in exported
    assert yaml.safe_load(TEXT)["cluster_synced_files"] == ["~/.ray/auth_token"]


def test_its_ports_are_those_of_hetero_join_and_of_its_firewall_list():
    ports = dict(re.findall(r"(--[a-z-]*port)=(\d+)", head()))
    assert {name: ports[name] for name in raynode._PORTS} == raynode._PORTS
    assert ports["--port"] == str(raynode._PORT)
    back, forth = (
        re.search(rf"from the {way}: +(.*)", TEXT)[1] for way in ("second PC to the first", "first PC to the second")
    )
    assert back == f"{raynode._PORT}, {_WORKER_PORTS}"
    assert forth == f"22, {ports['--node-manager-port']}, {ports['--min-worker-port']}-{ports['--max-worker-port']}"


def test_the_second_pc_joins_as_by_hand():
    (command,) = yaml.safe_load(TEXT)["worker_start_ray_commands"]
    assert "hetero join $RAY_HEAD_IP:6379 --role drafter --once" in command


def test_what_the_doctor_reads_of_it():
    found = read_cluster_file(FILE)
    assert (found.head, found.workers, found.user) == ("192.168.1.10", ("192.168.1.11",), "me")
    assert (found.venv, found.forth, found.back) == ("~/hetero/.venv", (10002, 10110), (6379, 20000))


@pytest.mark.parametrize(
    "change, words",
    [
        (("provider:", "supplier:"), "'provider' is missing"),
        (("type: local", "type: aws"), "only 'local'"),
        (("ssh_user: me", "user: me"), "'ssh_user' is missing"),
        (("cluster_name: hetero", "a: b: c"), "not YAML"),
    ],
)
def test_a_file_that_cannot_be_looked_at_is_one_line(tmp_path, change, words):
    file = tmp_path / "c.yaml"
    file.write_text(TEXT.replace(*change))
    with pytest.raises(ConfigError, match=words) as error:
        read_cluster_file(file)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="No such file"):
        read_cluster_file(tmp_path / "none.yaml")
