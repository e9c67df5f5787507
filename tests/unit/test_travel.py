"""Models that go to another machine: whole, the same, resumed, bounded, and to known peers only."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import msgpack
import msgspec
import pytest
import zmq

from hetero.workers.errors import ModelError, WireError
from hetero.workers.models import travel
from hetero.workers.models.travel import files_of, manifest_of, model_here, name_of
from hetero.workers.wire import transfer
from hetero.workers.wire.sockets import connect_dealer, make_keys
from hetero.workers.wire.transfer import CHUNK, FileFact, FileServer, Manifest, Origin, fetch, read_want


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HETERO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def server():
    made = FileServer("127.0.0.1")
    yield made
    made.close()


@pytest.fixture
def keys(server):
    made = make_keys()
    server.admit(made.public)
    return made


def model(folder: Path, size: int, name: str = "m.gguf") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(random.Random(size).randbytes(size))
    return folder / name


def offered(server: FileServer, path: Path) -> Origin:
    manifest = manifest_of(path)
    server.offer(name_of(manifest), files_of(path))
    return Origin(server.endpoint, name_of(manifest), manifest)


@pytest.mark.parametrize("size", [0, 1, CHUNK, 20 * CHUNK + 17])
def test_a_file_comes_whole_and_once(server, keys, cache, tmp_path, size):
    path = model(tmp_path / "here", size)
    origin, told = offered(server, path), []
    there = model_here(tmp_path / "there" / "m.gguf", origin, keys, told.append)
    assert there.read_bytes() == path.read_bytes() and there.name == "m.gguf"
    assert told == sorted(told) and (not size or told[-1] == size)
    server.close()  # now it is not asked any more
    assert model_here(tmp_path / "there" / "m.gguf", origin, keys) == there
    assert os.listdir(cache) == [name_of(origin.manifest)]


def test_the_same_file_at_its_own_place_is_used_another_is_not(server, keys, cache, tmp_path):
    path = model(tmp_path / "here", 3 * CHUNK)
    origin = offered(server, path)
    assert model_here(path, origin, keys) == path and not cache.exists()
    other = model(tmp_path / "other", 3 * CHUNK)
    other.write_bytes(os.urandom(3 * CHUNK))  # the same size and name
    assert model_here(other, origin, keys).read_bytes() == path.read_bytes() != other.read_bytes()


def test_a_directory_comes_without_code_and_splits_come_together(server, keys, cache, tmp_path):
    folder = model(tmp_path / "dir", 2 * CHUNK + 5, "model.safetensors").parent
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "modeling.py", "pytorch_model.bin"):
        (folder / name).write_text(name)
    there = model_here(tmp_path / "nowhere", offered(server, folder), keys)
    assert sorted(os.listdir(there)) == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    for n in (1, 2):
        model(tmp_path / "split", n * CHUNK, f"big-0000{n}-of-00002.gguf")
    split = model_here(tmp_path / "x.gguf", offered(server, tmp_path / "split" / "big-00001-of-00002.gguf"), keys)
    assert split.name == "big-00001-of-00002.gguf" and len(os.listdir(split.parent)) == 2


def test_a_fetch_that_was_cut_goes_on_where_it_stood(server, keys, cache, tmp_path):
    path = model(tmp_path / "here", 9 * CHUNK + 3)
    origin = offered(server, path)
    part = cache / f"{name_of(origin.manifest)}.part"
    part.mkdir(parents=True)
    (part / "m.gguf").write_bytes(path.read_bytes()[: 5 * CHUNK + 1])
    told: list[int] = []
    assert model_here(tmp_path / "no", origin, keys, told.append).read_bytes() == path.read_bytes()
    assert told[0] == 6 * CHUNK + 1


def test_what_came_damaged_is_fetched_anew(server, keys, cache, tmp_path):
    path = model(tmp_path / "here", 2 * CHUNK)
    origin = offered(server, path)
    part = cache / f"{name_of(origin.manifest)}.part"
    part.mkdir(parents=True)
    (part / "m.gguf").write_bytes(b"x" * CHUNK)
    with pytest.raises(ModelError, match=r"m\.gguf came damaged"):
        model_here(tmp_path / "no", origin, keys)
    assert model_here(tmp_path / "no", origin, keys).read_bytes() == path.read_bytes()


def test_the_cache_keeps_within_its_limit_what_was_used_last(server, keys, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HETERO_MODEL_CACHE", str(5 * CHUNK / 2**30))
    origins = [offered(server, model(tmp_path / f"m{n}", 2 * CHUNK + n)) for n in range(3)]
    for n, origin in enumerate(origins):
        there = model_here(tmp_path / "no", origin, keys)
        os.utime(there.parent, (n, n))
    assert sorted(os.listdir(cache)) == sorted(name_of(origin.manifest) for origin in origins[1:])
    with pytest.raises(ModelError, match="HETERO_MODEL_CACHE"):
        model_here(tmp_path / "no", offered(server, model(tmp_path / "large", 6 * CHUNK)), keys)


def test_a_full_disk_is_named_before_anything_is_sent(server, keys, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(travel, "_SPARE", 1 << 60)
    with pytest.raises(ModelError, match="do not fit its disk") as error:
        model_here(tmp_path / "no", offered(server, model(tmp_path / "here", 10)), keys)
    assert str(cache) in str(error.value)


def test_strangers_get_nothing(server, keys, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_FIRST", 0.3)
    monkeypatch.setattr(transfer, "_PATIENCE", 1.0)
    origin = offered(server, model(tmp_path / "here", 10))
    with pytest.raises(ModelError, match="nothing has come"):
        model_here(tmp_path / "no", origin, make_keys())


def test_who_is_admitted_later_is_served_then(server, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_FIRST", 0.3)
    path, keys = model(tmp_path / "here", CHUNK), make_keys()
    threading.Timer(1.0, lambda: server.admit(keys.public)).start()
    assert model_here(tmp_path / "no", offered(server, path), keys).read_bytes() == path.read_bytes()


def test_requests_that_make_no_sense_are_passed_over(server, keys, tmp_path):
    origin = offered(server, model(tmp_path / "here", 10))
    bad = [b"", b"\xc1" * 40, msgpack.packb(["x", 0, 0, 1]), msgpack.packb([origin.name, 9, 0, 1])]
    bad += [msgpack.packb([origin.name, 0, 0, CHUNK + 1]), msgpack.packb([origin.name, 0, -1, 1]), b"\x91" * 1000]
    for frame in bad[:2] + bad[4:]:
        with pytest.raises(WireError):
            read_want(frame)
    context = zmq.Context()
    socket = connect_dealer(context, origin.endpoint, b"odd", keys)
    for frame in bad:
        socket.send(frame)
    time.sleep(0.5)
    assert not socket.poll(200)
    socket.close(0)
    context.term()
    (tmp_path / "new").mkdir()
    fetch(origin, keys, tmp_path / "new")
    assert (tmp_path / "new" / "m.gguf").stat().st_size == 10


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".bashrc", "", "a\\b"])
def test_names_that_lead_elsewhere_are_no_names(name):
    plain = msgspec.to_builtins(Manifest([FileFact("a", 1, "0" * 64)]))
    plain["files"][0]["name"] = name
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(plain, Manifest)
