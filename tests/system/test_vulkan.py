"""A GPU beside the CPU, without a GPU: Vulkan on Mesa's lavapipe, a device in software. See CONTRIBUTING.md.

Dovetail's case: the drafter on the GPU, the target on the CPU; then the target's first layers on the GPU, too.
"""

from __future__ import annotations

import json
import time

import httpx
import pytest
from click.testing import CliRunner
from helpers.builtin_pair import DRAFTER, TARGET
from helpers.running_server import RunningServer
from helpers.streams import streams

from hetero.cli import main
from hetero.workers.engines.accelerators import llama_kinds
from hetero.workers.models.inflate import Size, inflate

pytestmark = [
    pytest.mark.vulkan,
    pytest.mark.timeout(900),  # software, and slow
    pytest.mark.skipif("vulkan" not in llama_kinds(), reason="llama-cpp-python has no Vulkan, or sees no device"),
]
SEEDS = [11, 12]
COMMON = {"target_engine": "llama_cpp", "draft_engine": "llama_cpp", "exact": True, "port": 0, "context": 1024}


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> str:
    """A target as slow as targets are, so that a drafter in software is in time."""
    file = tmp_path_factory.mktemp("models") / "slow.gguf"
    inflate(TARGET, file, Size(1024, 24, 3072), "q8_0")
    return str(file)


def texts(**settings: object) -> tuple[list[str], int, dict[str, object]]:
    """Of two streams at once, with the draft tokens accepted, and what the server says of its plan."""
    stack = RunningServer(**COMMON, **settings)
    try:
        _warm(stack)
        found = streams(stack, 48, SEEDS)
        plan = httpx.get(f"{stack.url}/plan").json()
    finally:
        stack.close()
    return [text for text, _ in found], sum(last["timings"]["draft_n_accepted"] for _, last in found), plan


def _warm(stack: RunningServer) -> None:
    """Shaders are made with the first forwards, which takes seconds: until then the target goes on without drafts."""
    end = time.monotonic() + 120
    streams(stack, 40, [1])
    while "drafter" in stack.session.coordinator.statuses and stack.status("drafter").forwards < 10:
        assert time.monotonic() < end, stack.events
        streams(stack, 60, [1])


def test_a_drafter_on_the_gpu_and_a_target_on_the_cpu(slow):
    plain, none, _ = texts(target=slow, draft="none")
    drafted, accepted, plan = texts(
        target=slow, draft=str(DRAFTER), strategy="serial", target_device="cpu:0", draft_device="vulkan:0"
    )
    assert drafted == plain and none == 0 and accepted > 12
    roles = {role["role"]: role for role in plan["roles"]}
    assert roles["drafter"]["device"] == "vulkan:0" and roles["target"]["device"].startswith("cpu")
    assert all(role["memory"] > role["memory_planned"] / 4 > 0 for role in roles.values())


def test_the_first_layers_of_the_target_on_the_gpu(slow):
    """Dovetail's split: what the GPU has room for. With a drafter and without, the same text."""
    split = {"target": slow, "target_device": "vulkan:0", "gpu_layers": 3}
    plain, _, _ = texts(draft="none", **split)
    drafted, accepted, plan = texts(strategy="serial", draft=str(DRAFTER), draft_device="vulkan:0", **split)
    assert drafted == plain and accepted > 12
    assert {role["device"] for role in plan["roles"]} == {"vulkan:0"}


def test_plans_on_the_gpu_are_tried():
    runner = CliRunner()
    found = runner.invoke(main, ["plan", "--json", "--context", "1024", "--target-engine", "llama_cpp",
                                 "--draft-engine", "llama_cpp", "--parallel", "1"])  # fmt: skip
    assert found.exit_code == 0, found.output
    plans = json.loads(found.stdout)["plans"]
    places = {(each["target"], each["drafter"]) for each in plans}
    assert ("cpu:0-1", "vulkan:0") in places and ("vulkan:0", None) in places
    beside = next(each for each in plans if each["drafter"] == "vulkan:0" and each["target"] == "cpu:0-1")
    assert set(beside["memory"]) == {"cpu", "vulkan:0"} and beside["tokens_per_second"] > 0
