"""Two users on one machine: the second can neither open, read, cancel nor alter what is the first's.

Needs root, to become somebody else.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from helpers.builtin_pair import NO_END
from helpers.forked import forked
from helpers.meddling import meddle
from helpers.running_server import RunningServer
from helpers.streams import streams

pytestmark = pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs root")
NOBODY = 65534
SEEDS = [7, 8, 9]


def as_another(call):
    """What a call returns that another user makes."""

    def become() -> object:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return call()

    return forked(become)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    keys = folder / "keys"
    keys.write_text("sesame\n")
    made = RunningServer(exact=True, strategy="serial", port=0, api_key_file=str(keys), trace=str(folder / "trace"))
    yield made
    made.close()


def ours(stack: RunningServer) -> list[psutil.Process]:
    """The processes of the session; not this one, which holds the tests' own things."""
    return psutil.Process().children(recursive=True)


def test_nothing_of_the_session_can_be_read(stack):
    pids = [process.pid for process in ours(stack)]
    assert len(pids) > 4
    folders = [stack.cluster._scratch.ray, Path(stack.config.trace).parent]
    secrets = [os.environ["RAY_AUTH_TOKEN"], "sesame"]

    def look() -> list[str]:
        found = []
        for pid in pids:
            for what in ("environ", "mem", "maps", "fd", "cwd"):
                path = f"/proc/{pid}/{what}"
                try:
                    if what == "fd":
                        os.listdir(path)
                    elif what == "cwd":
                        os.readlink(path)
                    else:
                        with open(path, "rb") as file:
                            file.read(1)
                    found.append(path)
                except OSError:
                    pass
            with suppress(OSError):  # it may have ended by now
                line = Path(f"/proc/{pid}/cmdline").read_text()
                found += [line for secret in secrets if secret in line]
        for root in {*folders, *Path("/dev/shm").glob("*plasma*")}:
            if os.access(root, os.R_OK) and root.stat().st_uid == 0:
                found.append(str(root))
        return found

    assert as_another(look) == []
    assert len(look()) > len(pids)  # its owner can: the look is one


def test_it_neither_opens_nor_cancels_nor_alters(stack):
    key = {"Authorization": "Bearer sesame"}
    calm = streams(stack, 500, SEEDS, headers=key, logit_bias=NO_END)
    status = stack.status("target")

    def try_it(seq: int) -> tuple[int, list[int]]:
        heard = meddle(status.endpoint, status.epoch, seq)
        codes = [
            httpx.post(f"{stack.url}/v1/completions", json={"prompt": "x"}, headers=headers).status_code
            for headers in ({}, {"Authorization": "Bearer guess"})
        ]
        for pid in (status.pid, os.getppid()):
            try:
                os.kill(pid, 9)
                codes.append(0)
            except PermissionError:
                codes.append(1)
        return heard, codes

    told, live = [], stack.session.verifiers._live

    def meanwhile() -> None:
        seq = next(iter(live))
        told.append((as_another(lambda: try_it(seq)), len(live) > 0))  # they were still under way

    stormy = streams(stack, 500, SEEDS, meanwhile, key, logit_bias=NO_END)
    assert told == [((0, [401, 401, 1, 1]), True)]
    assert [text for text, _ in stormy] == [text for text, _ in calm]
    assert stack.status("target").pid == status.pid
    stack.settled()
