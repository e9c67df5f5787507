"""GPUs of all kinds and the doctor, with the tools and libraries of other machines played."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.builtin_pair import DRAFTER, TARGET

from hetero.cli import main
from hetero.cluster import doctor
from hetero.cluster.inventory import take_inventory
from hetero.config import make_config
from hetero.errors import ConfigError
from hetero.placement.device import Device
from hetero.placement.errors import DeviceError
from hetero.planning.planner import make_plan
from hetero.workers.engines.accelerators import Accelerator, gpu_handles, install_line
from hetero.workers.errors import ModelError
from hetero.workers.runtime.pinning import pin


def tool(folder: Path, name: str, prints: str) -> None:
    script = folder / name
    script.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{prints}\nEND\n")
    script.chmod(0o755)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # and none of those that this machine has
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.fixture
def vulkan(monkeypatch):
    found = (Accelerator("vulkan", 0, "Arc A770", 8 << 30, 1), Accelerator("vulkan", 1, "UHD 770", 2 << 30, 2))
    monkeypatch.setattr("hetero.cluster.inventory.llama_gpus", lambda: found)
    monkeypatch.setattr("hetero.workers.engines.accelerators.llama_kinds", lambda: frozenset({"vulkan"}))


def findings(check, **settings) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in check(make_config(settings))}


def test_a_gpu_that_llama_cpp_can_use_drafts_or_takes_the_target(vulkan):
    inventory = take_inventory()
    assert [str(gpu.device) for gpu in inventory.gpus] == ["vulkan:0", "vulkan:1"]
    plan = make_plan(make_config({"draft_device": "vulkan:0", "target_device": "cpu:0"}), inventory)
    assert (plan.drafter.spec.engine, plan.drafter.spec.kind, plan.drafter.spec.gpus) == ("llama_cpp", "vulkan", [0])
    assert make_plan(make_config({}), inventory).target.device == Device("vulkan", (0,))  # the whole target fits
    with pytest.raises(ConfigError, match="torch cannot use vulkan"):
        make_plan(make_config({"target_device": "vulkan:0", "target_engine": "torch"}), inventory)
    with pytest.raises(DeviceError, match=r"rocm:0: not on this machine, which has vulkan:0, vulkan:1"):
        make_plan(make_config({"target_device": "rocm:0"}), inventory)


def test_an_nvidia_gpu_without_fitting_builds_is_refused_with_the_line_that_mends_it(tools):
    tool(tools, "nvidia-smi", "0, GPU-1, Some Card, 24000")
    inventory = take_inventory()
    assert [(str(gpu.device), gpu.name) for gpu in inventory.gpus] == [("cuda:0", "Some Card")]
    for model in (TARGET, TARGET.parent):
        with pytest.raises((ConfigError, ModelError)) as refused:
            make_plan(make_config({"target": str(model), "target_device": "cuda:0", "draft": "none"}), inventory)
        assert refused.value is not None
    with pytest.raises(ConfigError, match="GGML_CUDA=on"):
        make_plan(
            make_config({"target_device": "cuda:0", "target_engine": "llama_cpp", "draft_device": "cpu:0"}), inventory
        )
    found = findings(doctor.torch_build)["torch's GPU"]
    assert found.state == doctor.ODD and "download.pytorch.org/whl/cu" in found.fix
    assert findings(doctor.llama_build)["llama.cpp's GPU"].fix == install_line("cuda")
    assert "Some Card" in findings(doctor.hardware)["cuda:0"].found


@pytest.mark.parametrize(
    "cell, words", [("NV12", "NVLink between all"), ("PHB", "by PCIe"), ("X", "by a path nvidia-smi does not tell")]
)
def test_the_doctor_tells_how_several_gpus_reach_each_other(tools, cell, words):
    """As ``nvidia-smi topo -m`` prints it."""
    tool(tools, "nvidia-smi", "")
    lines = [f"GPU{n}\t" + "\t".join(" X " if n == m else cell for m in range(2)) + "\t0-31\t0" for n in range(2)]
    table = "\n".join(["\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity", *lines, "", "Legend:", "  X    = Self"])
    (tools / "nvidia-smi").write_text(
        f"#!/bin/sh\nif [ \"$1\" = topo ]; then /bin/cat <<'END'\n{table}\nEND\n"
        "else echo '0, GPU-1, Some Card, 24000'; echo '1, GPU-2, Some Card, 24000'; fi\n"
    )
    found = findings(doctor.hardware)["GPUs as one"].found
    assert found.startswith(f"cuda:0-1: {words}") and "llama_cpp gives each" in found
    tool(tools, "nvidia-smi", "0, GPU-1, Some Card, 24000")
    assert "GPUs as one" not in findings(doctor.hardware)


@pytest.mark.parametrize("name, flag", [("vulkaninfo", "GGML_VULKAN"), ("rocminfo", "GGML_HIP")])
def test_the_doctor_names_the_build_for_a_gpu_that_is_there(tools, name, flag):
    tool(tools, name, "GPU0")
    assert flag in findings(doctor.llama_build)["llama.cpp's GPU"].fix


def test_a_kind_that_is_not_there_is_told_when_a_model_loads():
    with pytest.raises(ModelError, match=r"no vulkan device.*GGML_VULKAN"):
        gpu_handles(DRAFTER, "vulkan")


def test_a_worker_sees_its_own_gpu_only(monkeypatch):
    names = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    interval = sys.getswitchinterval()
    expected = {
        ("cuda", ()): ("", "", ""),
        ("cuda", (1,)): ("1", "", ""),
        ("cuda", (0, 2)): ("0,2", "", ""),
        ("rocm", (1,)): (None, "1", ""),
        ("vulkan", (0,)): ("", "", "0"),
    }
    try:
        for (kind, gpus), values in expected.items():
            for name in names:
                os.environ.pop(name, None)
            pin([], gpus, kind)
            assert tuple(os.environ.get(name) for name in names) == values
        os.environ["CUDA_VISIBLE_DEVICES"] = "4,6"  # a user's own choice: numbers count within it
        pin([], [1], "cuda")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
        os.environ["CUDA_VISIBLE_DEVICES"] = "4,6,7"
        pin([], [0, 2], "cuda")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"
    finally:
        sys.setswitchinterval(interval)
        for name in names:
            os.environ.pop(name, None)


@pytest.mark.parametrize(
    "arch, device, runs",
    [
        ("sm_86", (8, 6), True),
        ("sm_80", (8, 9), True),
        ("sm_90", (8, 9), False),
        ("sm_75", (6, 1), False),
        ("compute_80", (12, 0), True),
        ("sm_90a", (9, 0), True),
        ("gfx1100", (8, 6), False),
    ],
)
def test_which_code_runs_on_which_gpu(arch, device, runs):
    assert doctor._runs(arch, *device) is runs


def test_an_engine_that_dies_is_told_with_its_signal(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -ILL $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    found = doctor._tried("llama_cpp", DRAFTER)
    assert found.state == doctor.BAD and "SIGILL" in found.found and "GGML_NATIVE=OFF" in found.fix


def test_the_report_ends_with_the_number_of_problems(monkeypatch, tmp_path):
    checks = ("installation", "hardware", "engines")
    for name in checks:
        monkeypatch.setattr(doctor, name, lambda config: iter(()))
    whole = CliRunner().invoke(main, ["doctor", "--port", "0"])
    assert whole.exit_code == 0 and "0 problems" in whole.output, whole.output
    assert "F16" in whole.output and "4096 tokens, the same in both" in whole.output
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("HETERO_CACHE", "/proc/nowhere")
        port = str(taken.getsockname()[1])
        found = CliRunner().invoke(main, ["doctor", "--port", port, "--target", str(tmp_path / "missing.gguf")])
    assert found.exit_code == 1 and "3 problems" in found.output, found.output
    assert "--port" in found.output and "HETERO_CACHE" in found.output
