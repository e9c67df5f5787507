"""Two computers as people have them: cluster.yaml as written, `hetero join`, and what becomes of both under faults.

Two hosts in network namespaces, with users, files, processes and sshd of their own. Prints the longest gap that a
stream saw under each fault.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.served_host import ON, Serving, until
from helpers.streams import from_drafter
from helpers.two_hosts import ROOT, Host, TwoHosts, lacking

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(600)]

CLUSTER = (ROOT / "cluster.yaml").read_text()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    if missing := lacking():
        pytest.skip(f"two hosts need {missing}")
    with TwoHosts(tmp_path_factory.mktemp("hosts")) as made:
        # All that follows passes a firewall that lets through what cluster.yaml lists, and nothing else.
        listed = [
            re.search(rf"from the {way}: +(.*)", CLUSTER)[1].replace(" ", "").replace("-", ":")
            for way in ("second PC to the first", "first PC to the second")
        ]
        made.big.firewall(listed[0])
        made.small.firewall(listed[1])
        yield made


def accepted(found: list[dict]) -> int:
    return sum(from_drafter(one["timings"]) for one in found)


def ray(*where: Host) -> list[str]:
    """What of Ray and hetero runs there."""
    words = ("ray::", "raylet", "gcs_server", "ray/", "ray.", "hetero serve", "hetero join", "cli join")
    return [f"{host.name}: {' '.join(p.cmdline())[:90]}" for host in where for p in host.processes(*words)]


@pytest.fixture(scope="module")
def up(hosts, tmp_path_factory) -> Iterator[Serving]:
    """cluster.yaml as its comments say, and the server on it."""
    hosts.big.write("cluster.yaml", CLUSTER.replace("192.168.1.10", "10.77.0.1").replace("192.168.1.11", "10.77.0.2"))
    began = time.monotonic()
    hosts.big.run(ON + "ray up -y cluster.yaml", seconds=200)
    made = Serving(hosts.big, tmp_path_factory.mktemp("up"), "--address auto --require-nodes 2")
    print(f"\nray up, then serve: ready after {time.monotonic() - began:.0f} s")
    yield made
    made.stop()
    print(made.text)


@pytest.fixture(scope="module")
def calm(up) -> list[dict]:
    found = up.streams()
    assert all(one["error"] is None for one in found) and accepted(found) > 50
    return found


def same(found: list[dict], calm: list[dict], fault: str) -> None:
    assert [one["error"] for one in found] == [None] * len(found)
    assert [one["timings"] is not None for one in found] == [True] * len(found)  # it came to its end
    assert [one["text"] for one in found] == [one["text"] for one in calm]
    print(f"\n{fault}: the texts are equal, the longest gap {max(one['gap'] for one in found):.1f} s")


def test_the_doctor_sees_what_would_go_wrong(hosts):
    def look(text: str) -> subprocess.CompletedProcess[str]:
        hosts.big.write("looked-at.yaml", text)
        return hosts.big.run(ON + "hetero doctor --cluster looked-at.yaml", check=False)

    mine = CLUSTER.replace("192.168.1.10", "10.77.0.1").replace("192.168.1.11", "10.77.0.2")
    assert "is not an address of this machine" in look(CLUSTER).stdout
    well = look(mine)
    assert well.returncode == 0 and "0 problems" in well.stdout, well.stdout
    assert all(f"port {port} of" in well.stdout for port in (6379, 20000, 10110, 10002))
    for change, words in (
        (("ssh_user: me", "ssh_user: you"), "ssh-copy-id you@10.77.0.1"),
        (("~/hetero/.venv", "~/elsewhere"), "~/elsewhere is not there"),
        (("10.77.0.2", "10.77.0.9"), "is it on, and its port 22 open?"),
    ):
        found = look(mine.replace(*change))
        assert found.returncode == 1 and words in found.stdout, found.stdout
    hosts.small.firewall("22,10002:10101")
    closed = look(mine)
    hosts.small.firewall("22,10110,10002:10101")
    assert closed.returncode == 1 and "closed from 10.77.0.1 to 10.77.0.2" in closed.stdout, closed.stdout


def test_the_table_says_who_is_where(up, hosts):
    assert re.search(r"cpu:0-\d+ +│ target", up.text) and re.search(r"gpupc/cpu +│ drafter", up.text)
    assert "tcp://10.77.0.1:2000" in up.text and "#" not in up.text  # an address without its key
    table = hosts.big.run(ON + "hetero nodes").stdout
    assert re.search(r"gpupc .* drafter", table) and re.search(r"bigpc \(here\) .* target", table), table


def test_a_cable_that_is_out_for_a_moment(up, hosts, calm):
    def pull() -> None:
        hosts.cable("down")
        time.sleep(8)
        hosts.cable("up")

    same(up.streams(pull), calm, "cable out for 8 s")


def test_a_cable_that_is_out_for_long_and_the_drafter_comes_back(up, hosts, calm, serving):
    mark = len(up.text)
    same(up.streams(lambda: hosts.cable("down")), calm, "cable out")
    up.after(mark, "drafter on gpupc: ")
    up.after(mark, "with drafts once it comes", 180)  # Ray has given the machine up
    assert up.health() == 200
    alone = up.streams()
    same(alone, calm, "without the second PC")
    assert alone[0]["timings"]["speculation"] == "off: no drafter"
    # Started while it is gone: plainly, and said so.
    early = serving("--address auto", port=8001)
    assert "NO DRAFTER: another machine is not in the cluster" in early.text
    same(early.streams(), calm, "started without the second PC")
    print(f"\nand stopped in {early.stop():.1f} s")
    late = serving("--address auto", port=8001)
    hosts.cable("up")
    print(f"\nback {up.after(mark, 'drafter is back', 180):.0f} s after the cable")
    late.after(0, "drafter is ready", 180)
    for server in (up, late):
        again = server.streams()
        same(again, calm, "with the drafter")
        assert accepted(again) > 50
    print(f"\nserve stopped in {late.stop():.1f} s")


def test_the_drafters_raylet_is_killed(up, hosts, calm):
    mark = len(up.text)
    same(up.streams(lambda: hosts.small.signal("raylet/raylet", signal.SIGKILL)), calm, "second PC's raylet killed")
    print(f"\nback {up.after(mark, 'drafter is back', 180):.0f} s later")
    again = up.streams()
    same(again, calm, "with the drafter back")
    assert accepted(again) > 50


@pytest.mark.parametrize("role", ["Verifier", "Drafter"])
def test_a_worker_that_hangs(up, hosts, calm, role):
    host = hosts.big if role == "Verifier" else hosts.small
    mark, seen = len(up.text), []

    def hang() -> None:
        host.signal(f"ray::{role}Actor", signal.SIGSTOP)
        if role == "Verifier":
            seen.append(until(lambda: up.health() == 503, 30))

    same(up.streams(hang), calm, f"{role} stopped for ever")
    assert len(seen) == (role == "Verifier")
    up.after(mark, "is back")
    assert "has not answered for 15 s" in up.text[mark:]
    until(lambda: up.health() == 200)
    again = up.streams()
    same(again, calm, f"with the {role.lower()} back")
    assert accepted(again) > 50


@pytest.fixture(scope="module")
def down(up, calm, hosts) -> float:
    """After `ray down`: how long the server took to stop."""
    took = up.stop()
    hosts.big.run(ON + "ray down -y cluster.yaml", seconds=200)
    until(lambda: not ray(hosts.big, hosts.small), 60, lambda: ray(hosts.big, hosts.small))
    return took


def test_ray_down_leaves_nothing(up, down, hosts):
    print(f"\nserve stopped in {down:.1f} s")
    assert up.process.returncode == 0 and not ray(hosts.big, hosts.small)


def test_a_box_of_several_devices(hosts, down, calm, serving):
    """docs/box.yaml as written, with cores in place of GPUs."""
    hosts.big.write("box.yaml", (ROOT / "docs/box.yaml").read_text().replace("192.168.1.20", "10.77.0.1"))
    hosts.big.run(ON + "ray up -y box.yaml", seconds=200)
    server = serving("--address auto --target-device cpu:0 --draft-device cpu:1")
    found = server.streams()
    same(found, calm, "a box of its own")
    assert accepted(found) > 50
    server.stop()
    hosts.big.run(ON + "ray down -y box.yaml", seconds=200)
    until(lambda: not ray(hosts.big), 60, lambda: ray(hosts.big))


# Without ssh: hetero join


@pytest.fixture(scope="module")
def open_house(hosts, down, tmp_path_factory) -> Iterator[Serving]:
    made = Serving(hosts.big, tmp_path_factory.mktemp("open"), "--cluster")
    yield made
    made.stop()
    print(made.text)


@pytest.fixture
def joined(hosts, tmp_path) -> Iterator[Callable[..., tuple[subprocess.Popen, Path]]]:
    """Starts `hetero join` on the second PC; it does not outlive the test."""
    made = []

    def join(server: Serving, before: str = "") -> tuple[subprocess.Popen, Path]:
        line = re.search(r"hetero join \S+ --token \S+", server.text)[0]
        log = tmp_path / f"join-{time.monotonic_ns()}.log"
        made.append(hosts.small.start(f"{ON}{before}{line} --role drafter", log))
        return made[-1], log

    yield join
    for process in made:
        if process.poll() is None:
            hosts.small.signal("cli join", signal.SIGTERM)
            process.wait(60)


@pytest.fixture
def serving(hosts, tmp_path) -> Iterator[Callable[..., Serving]]:
    """Starts `hetero serve` on the first PC; it does not outlive the test."""
    made = []

    def serve(flags: str, **more: object) -> Serving:
        made.append(Serving(hosts.big, tmp_path, flags, **more))
        return made[-1]

    yield serve
    for server in made:
        server.stop()


def test_a_machine_joins_is_used_leaves_and_returns(open_house, hosts, calm, joined):
    assert "BOTH ROLES ON bigpc" in open_house.text
    same(open_house.streams(), calm, "both roles on the first PC")
    for _ in range(2):
        mark, began = len(open_house.text), time.monotonic()
        process, log = joined(open_house)
        until(lambda log=log: "joined as 10.77.0.2: bigpc" in log.read_text(), 60, log.read_text)
        open_house.after(mark, "on gpupc")
        print(f"\njoined and drafting {time.monotonic() - began:.0f} s after hetero join")
        found = open_house.streams()
        same(found, calm, "with the second PC")
        assert accepted(found) > 50
        mark = len(open_house.text)
        leaving = []

        def leave(leaving=leaving) -> None:
            leaving.append(time.monotonic())
            hosts.small.signal("cli join", signal.SIGINT)

        same(open_house.streams(leave), calm, "the second PC leaves")
        process.wait(30)
        assert process.returncode == 0 and not ray(hosts.small), ray(hosts.small)
        assert hosts.small.run("ls -d /tmp/hetero-*", check=False).returncode != 0
        open_house.after(mark, "drafter is back")
        print(f"\nback beside the target {time.monotonic() - leaving[0]:.0f} s after it left")
        beside = open_house.streams()
        same(beside, calm, "with both roles on the first PC again")
        assert accepted(beside) > 50


def test_another_hetero_a_wrong_token_and_nobody_there_are_one_line_each(open_house, hosts, tmp_path):
    token = re.search(r"--token (\S+)", open_house.text)[1]

    def refused(flags: str, words: str) -> None:
        began = time.monotonic()
        done = hosts.small.run(f"{ON}hetero join {flags}", check=False)
        print(f"\n{done.stdout.strip()} ({time.monotonic() - began:.0f} s)")
        assert done.returncode == 1 and words in done.stdout and done.stdout.count("\n") == 1, done.stdout

    for flags, words in (
        (f"10.77.0.1:6379 --token {'0' * 64}", "token"),
        (f"10.77.0.9:6379 --token {token}", "does not answer"),
        (f"10.77.0.1:6380 --token {token}", "does not answer"),
        (f"nonsense --token {token}", "HOST:PORT"),
    ):
        refused(flags, words)
    file = ROOT / "workers" / "runtime" / "build.py"
    hosts.small.run(f"echo '# another' >> {file}", user="root")  # seen by this host alone
    mark = len(open_house.text)
    refused(f"10.77.0.1:6379 --token {token}", "install the same on both")
    assert "gpupc" not in open_house.text[mark:]  # nothing was moved there
    hosts.small.run(f"sed -i '$d' {file}", user="root")
    assert not ray(hosts.small)


def test_the_head_is_killed(open_house, hosts, calm, joined):
    process, log = joined(open_house)
    until(lambda: "joined" in log.read_text(), 60, log.read_text)
    mark, seen = len(open_house.text), []

    def kill() -> None:
        hosts.big.signal("gcs_server", signal.SIGKILL)
        # 503 as long as streams run, then it ends: between two looks where the streams are short.
        seen.append(until(lambda: open_house.health() in (503, 0), 30))

    same(open_house.streams(kill), calm, "Ray's head killed")
    print(f"\nknown {seen[0]:.1f} s after")
    open_house.process.wait(90)
    assert open_house.process.returncode == 1
    assert "is gone" in open_house.text[mark:], open_house.text
    assert not ray(hosts.big), ray(hosts.big)
    until(lambda: "waiting for it to come back" in log.read_text(), 60, log.read_text)
    hosts.small.signal("cli join", signal.SIGTERM)
    process.wait(30)
    assert not ray(hosts.small), ray(hosts.small)


def test_nobody_there_is_told_within_seconds(hosts):
    began = time.monotonic()
    done = hosts.big.run(ON + "hetero serve --port 0 --address 10.77.0.1:6390", check=False)
    assert done.returncode == 1 and "does not answer" in done.stdout and time.monotonic() - began < 20


def test_a_killed_servers_folder_goes_with_the_next_start(hosts, down, serving):
    for flags in ("--cluster", ""):
        first = serving(flags)
        hosts.big.signal("hetero serve", signal.SIGKILL)
        first.process.wait(10)
        left = set(hosts.big.run("ls -d /tmp/hetero-*").stdout.split())
        second = serving(flags)
        now = set(hosts.big.run("ls -d /tmp/hetero-*").stdout.split())
        assert left and not left & now
        second.stop()
        assert hosts.big.run("ls -d /tmp/hetero-*", check=False).returncode != 0
        until(lambda: not ray(hosts.big), 30, lambda: ray(hosts.big))


def test_a_model_the_second_pc_lacks_is_sent_there_once(hosts, down, calm, serving, joined):
    hosts.big.run("mkdir -p models && cp hetero/hetero/data/pair/drafter.gguf models/small.gguf")
    hosts.small.run("rm -rf .cache/hetero/models")
    kept_first = ""
    for n in range(2):
        server = serving("--cluster --draft models/small.gguf")
        process, _ = joined(server)
        server.after(0, "drafter is back")
        kept = hosts.small.run("find .cache/hetero/models -name '*.gguf' -printf '%p %T@\\n'").stdout
        assert kept.count("small.gguf") == 1
        kept_first = kept if n == 0 else kept_first
        assert kept == kept_first  # not a second time
        found = server.streams()
        same(found, calm, "with a drafter that was sent there")
        assert accepted(found) > 50
        server.stop()
        hosts.small.signal("cli join", signal.SIGINT)
        process.wait(30)


def test_rays_own_connections_in_tls(hosts, down, calm, serving, joined):
    """As the README says it: a certificate authority, and a certificate for each machine's address."""
    for host in (hosts.big, hosts.small):
        hosts.big.run(
            "mkdir -p tls && cd tls && (test -f ca.pem || openssl req -x509 -newkey rsa:2048 -nodes -days 365 "
            "-subj /CN=home -keyout ca.key -out ca.pem) && "
            f"openssl req -newkey rsa:2048 -nodes -subj /CN={host.name} -keyout {host.name}.key -out csr && "
            f"openssl x509 -req -in csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 "
            f"-extfile <(echo subjectAltName=IP:{host.address}) -out {host.name}.pem"
        )
        host.write("tls.sh", (
            f"export RAY_USE_TLS=1 RAY_TLS_CA_CERT=~/tls/ca.pem RAY_TLS_SERVER_CERT=~/tls/{host.name}.pem "
            f"RAY_TLS_SERVER_KEY=~/tls/{host.name}.key\n"
        ))  # fmt: skip
    hosts.big.run("rsync -a -e 'ssh -o StrictHostKeyChecking=accept-new' tls me@10.77.0.2:")
    server = serving("--cluster", before=". ./tls.sh && ")
    process, _ = joined(server, before=". ./tls.sh && ")
    server.after(0, "drafter is back")
    found = server.streams()
    same(found, calm, "Ray in TLS")
    assert accepted(found) > 50
    shaken = hosts.small.run(
        "echo | openssl s_client -connect 10.77.0.1:6379 -CAfile tls/ca.pem -cert tls/gpupc.pem -key tls/gpupc.key",
        check=False,  # how the connection ends is another matter
    ).stdout
    assert re.search(r"depth=0 CN ?= ?bigpc\s+verify return:1", shaken), shaken
    server.stop()
    hosts.small.signal("cli join", signal.SIGINT)
    process.wait(30)
