"""``hetero doctor``: what is installed and at hand, what would go wrong, and the line that mends it."""

from __future__ import annotations

import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hetero.cluster.cluster_file import examine_cluster, read_cluster_file
from hetero.cluster.finding import BAD, GOOD, ODD, Finding
from hetero.cluster.inventory import cpu_name, take_inventory
from hetero.cluster.token import known_token
from hetero.config import Config, api_keys, check_certificate
from hetero.data import PAIR
from hetero.errors import HeteroError
from hetero.models import drafter_of, find_model
from hetero.placement.device import Device
from hetero.planning.fastest import Fastest
from hetero.planning.planner import Planner
from hetero.planning.vocabularies import shared
from hetero.workers.engines.accelerators import install_line, llama_gpus, llama_kinds, torch_kinds
from hetero.workers.engines.registry import ENGINES
from hetero.workers.models.cache import cache_root
from hetero.workers.models.forms import GGUF
from hetero.workers.models.model import Model
from hetero.workers.models.next_layers import why_not

# Each with the extra that brings it; "": it is always needed.
_PACKAGES = {
    "ray": "",
    "pyzmq": "",
    "llguidance": "",
    "llama-cpp-python": "llama",
    "torch": "torch",
    "fastapi": "serve",
}
_STORE = 128 << 20  # bytes Ray needs of shared memory
_FILES = 4096  # open files for some hundred clients
_ANSWER = 120  # seconds an engine may take to try itself


def examine(config: Config) -> Iterator[Finding]:
    """All findings for a configuration, the quick ones first."""
    for check in (installation, hardware, torch_build, llama_build, engines, memory_of_ray, ports, access, models):
        try:
            yield from check(config)
        except HeteroError as error:
            yield Finding(check.__name__, BAD, str(error))
        except ModuleNotFoundError as error:  # of an extra that is not installed
            yield Finding(check.__name__, ODD, f"cannot be looked at without {error.name}", "pip install 'hetero[all]'")


def installation(config: Config) -> Iterator[Finding]:
    """Versions."""
    yield Finding("Python", GOOD, f"{platform.python_version()} on {platform.platform(terse=True)}")
    for name, extra in _PACKAGES.items():
        try:
            yield Finding(name, GOOD, version(name))
        except PackageNotFoundError:
            line = f"pip install 'hetero[{extra}]'" if extra else "pip install hetero"
            yield Finding(name, ODD if extra else BAD, "not installed", line)


def hardware(config: Config) -> Iterator[Finding]:
    """Cores, memory, GPUs."""
    found = take_inventory()
    free, total = found.memory / 2**30, psutil.virtual_memory().total / 2**30
    state = ODD if free < 2 else GOOD
    yield Finding("CPU", GOOD, f"{cpu_name()}, {len(found.cores)} usable cores")
    yield Finding(
        "memory", state, f"{free:.1f} of {total:.1f} GiB free", "close other programs" if state == ODD else ""
    )
    for gpu in found.gpus:
        room = f", {gpu.free / 2**30:.1f} GiB free" if gpu.free else ""
        yield Finding(str(gpu.device), GOOD, gpu.name + room)
    if not found.gpus:
        yield Finding("GPU", GOOD, "none that hetero can use; a spare core drafts instead")
    for kind in dict.fromkeys(gpu.kind for gpu in found.gpus):
        numbers = [gpu.number for gpu in found.gpus if gpu.kind == kind]
        if len(numbers) > 1:
            yield Finding("GPUs as one", GOOD, f"{Device(kind, tuple(numbers))}: {_path_between(kind)}")


def _path_between(kind: str) -> str:
    """How GPUs of a machine reach each other, and what that means for an engine on several."""
    tool = shutil.which("nvidia-smi") if kind == "cuda" else None
    split = "llama_cpp gives each some of a GGUF file's layers"
    if tool is None:
        return split + ("; torch shares every layer" if kind == "rocm" else "")
    try:
        text = subprocess.run([tool, "topo", "-m"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        text = ""
    rows = [line.split() for line in text.splitlines() if re.match(r"GPU\d+\s", line)]
    cells = [cell for row in rows for cell in row[1 : len(rows) + 1] if cell != "X"]
    if cells and all(re.fullmatch(r"NV\d+", cell) for cell in cells):
        return f"NVLink between all; {split}, torch shares every layer (tensor-parallel)"
    path = "by PCIe" if cells else "by a path nvidia-smi does not tell"
    return f"{path}; {split}, torch shares every layer and waits for that path twice a layer"


def torch_build(config: Config) -> Iterator[Finding]:
    """Whether the torch wheel fits the GPU."""
    nvidia = [gpu for gpu in take_inventory().gpus if gpu.kind == "cuda"]
    wheel = f"torch=={version('torch').partition('+')[0]}"
    if not nvidia:
        amd = shutil.which("rocminfo") is not None
        fix = f"pip install {wheel} --index-url https://download.pytorch.org/whl/rocm7.2" if amd else ""
        fits = not amd or "rocm" in torch_kinds()
        text = f"built for {', '.join(torch_kinds()) or 'the CPU'}"
        yield Finding("torch's GPU", GOOD if fits else ODD, text, "" if fits else fix)
        return
    line = f"pip install {wheel} --index-url https://download.pytorch.org/whl/cu130"
    if "cuda" not in torch_kinds():
        yield Finding("torch's GPU", ODD, f"this wheel is for {version('torch').partition('+')[2]}, not CUDA", line)
        return
    import torch

    if not torch.cuda.is_available():
        yield Finding("torch's GPU", BAD, "torch sees no CUDA device", "update the NVIDIA driver (nvidia-smi works?)")
        return
    built = torch.cuda.get_arch_list()
    for number in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(number)
        fits = any(_runs(arch, major, minor) for arch in built)
        text = f"cuda:{number} is sm_{major}{minor}; the wheel has {' '.join(built)}"
        older = f"pip install {wheel} --index-url https://download.pytorch.org/whl/cu126"
        yield Finding("torch's GPU", GOOD if fits else BAD, text, "" if fits else older)


def _runs(arch: str, major: int, minor: int) -> bool:
    """Whether code for ``arch`` (sm_86, compute_90) runs on a device: the same major version, or compiled at start."""
    kind, _, digits = arch.partition("_")
    digits = digits.rstrip("af")
    if not digits.isdecimal():
        return False
    of = divmod(int(digits), 10)
    return of <= (major, minor) if kind == "compute" else of[0] == major and of[1] <= minor


def llama_build(config: Config) -> Iterator[Finding]:
    """Whether llama-cpp-python can use the GPU that is there."""
    kinds = llama_kinds()
    for gpu in llama_gpus():
        yield Finding("llama.cpp's GPU", GOOD, f"{gpu.kind}:{gpu.number}, {gpu.name}")
    there = [
        ("cuda", "nvidia-smi", "NVIDIA GPU"),
        ("rocm", "rocminfo", "AMD GPU with ROCm"),
        ("vulkan", "vulkaninfo", "Vulkan"),
    ]
    found = [(kind, what) for kind, tool, what in there if shutil.which(tool)]
    if platform.system() == "Darwin":
        found.append(("mps", "Metal"))
    missing = [(kind, what) for kind, what in found if kind not in kinds]
    if missing and not kinds:
        for kind, what in missing:
            text = f"built without {what}: GGUF models run on the CPU"
            yield Finding("llama.cpp's GPU", ODD, text, install_line(kind))
    elif not kinds:
        yield Finding("llama.cpp's GPU", GOOD, "built for the CPU, and no GPU is there")


def engines(config: Config) -> Iterator[Finding]:
    """Each engine runs a tiny model in a process of its own, for it may die of an instruction the CPU lacks."""
    from hetero.workers.models.inflate import Size, inflate

    with tempfile.TemporaryDirectory(prefix="hetero-doctor-") as folder:
        small = Path(folder) / "q8_0.gguf"  # quantised weights take the instructions that builds get wrong
        inflate(PAIR / "drafter.gguf", small, Size(128, 4, 384), "q8_0")
        for name in (entry.name for entry in ENGINES.values() if GGUF in entry.formats):
            yield _tried(name, small)


def _tried(name: str, model: Path) -> Finding:
    command = [sys.executable, "-P", "-m", "hetero.workers.engines.selftest", name, str(model)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER)
    except subprocess.TimeoutExpired:
        return Finding(f"engine {name}", BAD, f"gave no answer in {_ANSWER} s")
    last = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode < 0:
        cause = signal.Signals(-done.returncode).name
        return Finding(f"engine {name}", BAD, f"died of {cause}: it was built for another CPU", ENGINES[name].repair())
    return Finding(f"engine {name}", {0: GOOD, 3: ODD}.get(done.returncode, BAD), last)


def memory_of_ray(config: Config) -> Iterator[Finding]:
    """What Ray needs of the system."""
    shared = Path("/dev/shm")
    if shared.is_dir():
        room = shutil.disk_usage(shared).free
        small = room < _STORE
        fix = "in a container: --shm-size=1g" if small else ""
        yield Finding("shared memory", ODD if small else GOOD, f"{room / 2**20:.0f} MiB free in /dev/shm", fix)
    import resource

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = files < _FILES
    yield Finding("open files", ODD if few else GOOD, f"{files} allowed", f"ulimit -n {_FILES}" if few else "")
    if config.address != "local":
        token = bool(known_token())
        fix = "" if token else "`ray up cluster.yaml` and `hetero serve --cluster` make one"
        yield Finding("Ray's token", GOOD if token else BAD, "known" if token else "not known", fix)


def ports(config: Config) -> Iterator[Finding]:
    """The HTTP port, keys and certificate."""
    api_keys(config)
    check_certificate(config)
    try:
        with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((config.host, config.port))
        yield Finding("HTTP port", GOOD, f"{config.host}:{config.port} is free")
    except OSError as error:
        yield Finding("HTTP port", BAD, f"{config.host}:{config.port}: {error.strerror}", "choose another with --port")


def access(config: Config) -> Iterator[Finding]:
    """Folders hetero writes to."""
    for what, folder in (("cache", cache_root()), ("temporary files", Path(tempfile.gettempdir()))):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            room = shutil.disk_usage(folder).free / 2**30
            yield Finding(what, ODD if room < 1 else GOOD, f"{folder}, {room:.0f} GiB free")
        except OSError as error:
            fix = "set HETERO_CACHE to a folder of yours" if what == "cache" else "set TMPDIR to a folder of yours"
            yield Finding(what, BAD, f"{folder}: {error.strerror or error}", fix)


def models(config: Config) -> Iterator[Finding]:
    """The model pair, and whether it fits where it would run."""
    target = find_model(config.target, "target")
    yield _model("target", target)
    asked = drafter_of(config.target, config.draft)
    if asked != "none":
        drafter = find_model(asked, "drafter", target)
        yield _model("drafter", drafter)
        found = shared(target, drafter)
        if found.difference:
            text = f"{found.difference}; {found.share:.0%} of a text's tokens are tokens of both"
            promise = (
                "the drafter proposes those only, which costs agreement: one of the target's family would do better"
            )
            yield Finding("vocabularies", ODD, text, promise)
        else:
            yield Finding("vocabularies", GOOD, f"{len(target.tokenizer.vocabulary)} tokens, the same in both")
        if drafter.context < target.context:
            text = f"the drafter's {drafter.context} tokens end before the target's {target.context}"
            yield Finding("context", ODD, text, "longer sequences go on without drafts")
    else:
        fix = "name a small model of the target's family with --draft"
        if target.is_gguf and why_not(target.path) is None:
            fix = "--draft mtp: the target has next-token layers of its own"
        yield Finding("drafter", ODD, "none: plain decoding", fix)
    if config.address == "local":
        inventory = take_inventory()
        known = Fastest(inventory.memory, config.weights, config.kv_cache, lambda line: None, measure=False)
        plan = Planner(config, inventory, known).plan()
        for placed in [plan.target] + ([plan.drafter] if plan.drafter else []):
            text = f"{placed.spec.engine} on {placed.device}, about {placed.memory.total / 2**20:,.0f} MiB"
            yield Finding(f"placing the {placed.spec.role}", GOOD, text)


def _model(role: str, model: Model) -> Finding:
    size = model.shape.weights / 2**20
    return Finding(
        role, GOOD, f"{model.name}: {size:,.0f} MiB, {model.metadata.quantisation}, {model.context} tokens of context"
    )


def run(config: Config, cluster: str, console: Console) -> int:
    """Print the report, of this machine or of those of a ``cluster`` file; returns 1 when something is broken. Raises
    ConfigError."""
    findings = examine_cluster(read_cluster_file(Path(cluster))) if cluster else examine(config)
    return report(findings, console)


def report(found: Iterator[Finding], console: Console) -> int:
    """Print findings as they come; returns 1 when something is broken."""
    table = Table("", "what", "found")
    colours = {GOOD: "green", ODD: "yellow", BAD: "red"}
    findings = []
    with console.status("looking"):
        for finding in found:
            findings.append(finding)
            table.add_row(f"[{colours[finding.state]}]{finding.state}", finding.what, escape(finding.found))
    console.print(table)
    for finding in findings:  # lines to copy must not be cut by a table
        if finding.fix:
            console.print(f"{finding.what}: {finding.fix}", highlight=False, markup=False, soft_wrap=True)
    broken = sum(finding.state == BAD for finding in findings)
    console.print(f"{broken} problems" if broken != 1 else "1 problem", highlight=False)
    return 1 if broken else 0
