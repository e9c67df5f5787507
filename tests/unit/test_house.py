"""The house: rooms by folder, arrows that only point down, nothing that decides in a room for machines but machines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hetero

ROOT = Path(hetero.__file__).parent.parent

# A room may import the rooms above it in this list (and itself), never one below.
ROOMS = [
    "placement",
    "workers/__init__.py",
    "workers/errors.py",
    "workers/wire",
    "workers/sampling",
    "workers/models",
    "workers/engines",
    "workers/decoding",
    "workers/simulation",
    "workers/runtime",
    "workers/__main__.py",
    "hetero",
]
# What is bought in, room by room: nobody else may import it.
OUTSIDE = {
    "ray": ("hetero/cluster",),
    "zmq": ("workers/wire", "workers/runtime", "workers/engines/torch", "hetero/gateway/verifiers", "hetero/bench"),
    "torch": (
        "workers/engines/torch",
        "workers/engines/registry.py",
        "hetero/cluster",
        "hetero/bench",
        "hetero/distill",
    ),
    "transformers": ("workers/engines/torch", "workers/models", "hetero/distill"),
    "llama_cpp": ("workers/engines", "workers/models", "hetero/bench/baseline.py"),
    "fastapi": ("hetero/gateway",),
    "threading": ("workers/runtime", "workers/wire", "workers/engines", "workers/models/deep.py", "hetero"),
    "asyncio": ("hetero",),
}
NEVER = {"pickle", "cloudpickle", "marshal", "shelve"}


def sources(room: str) -> list[Path]:
    found = ROOT / room
    return [found] if found.is_file() else sorted(p for p in found.rglob("*.py") if "/hetero/workers/" not in str(p))


def imports(path: Path) -> set[str]:
    """Modules a file imports, dotted."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, path
            found.add(node.module)
    return found


def room_of(place: str) -> int:
    """The index of the room a path lies in."""
    whole = place.removesuffix(".py") + "/"
    return next(n for n, room in enumerate(ROOMS) if whole.startswith(room.removesuffix(".py") + "/"))


def ours(module: str) -> str | None:
    """The path of one of our modules, without ending; None for another's."""
    if module.split(".")[0] != "hetero":
        return None
    inner = module.removeprefix("hetero.")
    return (inner if inner.startswith(("workers", "placement")) else module).replace(".", "/")


FILES = sorted({path for room in ("placement", "workers", "hetero") for path in sources(room)})


def test_every_file_is_looked_at():
    assert len(FILES) > 100
    links = [ROOT / "hetero" / name for name in ("workers", "placement")]
    assert all(link.is_symlink() for link in links)  # one package to import, three folders to read


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_only_point_down(room):
    files = [path for path in FILES if ROOMS[room_of(str(path.relative_to(ROOT)))] == room]
    assert files
    for path in files:
        for module in imports(path):
            assert module.split(".")[0] not in ("workers", "placement"), f"{path}: import hetero.{module}"
            place = ours(module)
            if place is not None:
                assert room_of(place) <= ROOMS.index(room), f"{path} imports {module}"


def test_placement_imports_nothing_of_ours_and_nothing_heavy():
    for path in sources("placement"):
        for module in imports(path):
            assert (ours(module) or "placement").startswith("placement"), (path, module)
            assert module.split(".")[0] not in {"numpy", *OUTSIDE}, (path, module)


def test_what_is_bought_in_stays_in_its_rooms():
    for path in FILES:
        where = str(path.relative_to(ROOT))
        for module in {module.split(".")[0] for module in imports(path)}:
            assert module not in NEVER, path
            if module in OUTSIDE:
                assert any(where == room or where.startswith(f"{room}/") for room in OUTSIDE[module]), (where, module)


def test_decoding_does_no_io_and_knows_no_clock():
    """The whole folder: messages, clock and outcomes in, actions out."""
    forbidden = {"zmq", "threading", "socket", "torch", "time", "queue", "asyncio", "os", "ray", "random", "subprocess"}
    for path in sources("workers/decoding"):
        assert not {module.split(".")[0] for module in imports(path)} & forbidden, path


def test_modules_are_small():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 400, path


def test_tuned_numbers_stand_in_one_place():
    """No policy has a constant of its own but in ``tuning``, where its origin stands beside it."""
    for path in sources("workers/decoding/policy"):
        if path.name == "tuning.py":
            continue
        for node in ast.parse(path.read_text()).body:
            numbers = isinstance(node, ast.Assign) and any(
                isinstance(part, ast.Constant) and isinstance(part.value, int | float) for part in ast.walk(node.value)
            )
            assert not numbers, f"{path.name}:{node.lineno}"
