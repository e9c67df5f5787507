"""Files over the wire: a server of some, and a client that fetches them chunk by chunk, from where it stood last.

A client asks ``Want``; the answer is the same ``Want`` and the bytes. CURVE everywhere: nothing is sent in clear.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgpack
import msgspec
import zmq
from msgspec import Meta, Struct

from hetero.workers.errors import WireError
from hetero.workers.wire.sockets import Doorkeeper, Keys, bind_router, connect_dealer, make_keys

CHUNK = 1 << 18
_AHEAD = 8  # chunks asked for at once
_PATIENCE = 60.0  # seconds without a byte after which a fetch fails
_FIRST, _AGAIN = 3.0, 20.0  # seconds without a chunk, before the first and later, after which it is asked for again

_NAME = Meta(pattern=r"^[^/\\\x00.][^/\\\x00]{0,254}$")  # a plain name: no folder, nothing hidden


class FileFact(Struct, frozen=True, forbid_unknown_fields=True):
    """One file: its name, bytes, and SHA-256 (hex)."""

    name: Annotated[str, _NAME]
    size: Annotated[int, Meta(ge=0, le=1 << 45)]
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """What a model consists of: one file, or those of a directory."""

    files: Annotated[list[FileFact], Meta(min_length=1, max_length=1024)]
    directory: bool = False

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(fact.size for fact in self.files)


class Origin(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a model can be had: a server's ``endpoint``, and the ``name`` it goes by there."""

    endpoint: Annotated[str, Meta(max_length=512)]
    name: Annotated[str, Meta(max_length=64)]
    manifest: Manifest


class Want(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``length`` bytes of file ``file`` of ``name``, from ``offset`` on."""

    name: Annotated[str, Meta(max_length=64)]
    file: Annotated[int, Meta(ge=0, lt=1024)]
    offset: Annotated[int, Meta(ge=0, le=1 << 45)]
    length: Annotated[int, Meta(ge=1, le=CHUNK)]


def read_want(frame: bytes) -> Want:
    """Raises WireError."""
    try:
        return msgspec.convert(msgpack.unpackb(frame[:512], max_array_len=4, max_str_len=64), Want)
    except (msgpack.UnpackException, msgspec.ValidationError, ValueError) as error:
        raise WireError(f"not a request for a file: {error}") from None


class FileServer:
    """Serves offered files to peers with admitted keys, from a thread of its own. Methods may be called from any."""

    def __init__(self, host: str, ports: tuple[int, int] | None = None) -> None:
        """Raises WireError where no port can be had."""
        self._offers: dict[str, list[Path]] = {}
        self._keys: frozenset[str] = frozenset()
        self._context: zmq.Context[Any] = zmq.Context()
        self._door = Doorkeeper(self._context)
        self._stopping = threading.Event()
        try:
            self._socket, self.endpoint = bind_router(self._context, host, make_keys(), ports)
        except WireError:
            self._door.close()
            self._context.term()
            raise
        self._thread = threading.Thread(target=self._serve, name="hetero-files", daemon=True)
        self._thread.start()

    def offer(self, name: str, files: list[Path]) -> None:
        """From now on these can be had, in this order, under a name."""
        self._offers[name] = files

    def admit(self, key: str) -> None:
        """Let a peer in, by its public key (hex)."""
        self._keys |= {key}
        self._door.admit(self._keys)

    def close(self) -> None:
        """End it; safe to call twice."""
        self._stopping.set()
        self._thread.join()

    def _serve(self) -> None:
        opened: dict[Path, int] = {}
        try:
            while not self._stopping.is_set():
                if not self._socket.poll(200):
                    continue
                peer, *frames = self._socket.recv_multipart()
                try:
                    want = read_want(frames[0] if frames else b"")
                    path = self._offers[want.name][want.file]
                    if path not in opened:
                        opened[path] = os.open(path, os.O_RDONLY)
                    data = os.pread(opened[path], want.length, want.offset)
                    self._socket.send_multipart([peer, frames[0], data], zmq.NOBLOCK)
                except (WireError, KeyError, IndexError, OSError, zmq.ZMQError):
                    continue  # who wants it still asks again
        finally:
            for number in opened.values():
                os.close(number)
            self._socket.close(0)
            self._door.close()
            self._context.term()


def fetch(origin: Origin, keys: Keys, folder: Path, told: Callable[[int], None] = lambda done: None) -> None:
    """Fetch what ``folder`` lacks of an origin's files; what it holds of them already is kept. ``told`` hears the bytes
    that are there. Raises WireError when nothing comes any more, OSError when the disk does not take it."""
    line = _Line(origin, keys)
    try:
        before = 0
        for number, fact in enumerate(origin.manifest.files):
            with (folder / fact.name).open("ab") as out:
                for have in _fetch_file(line, number, fact, out):
                    told(before + have)
            before += fact.size
    finally:
        line.close()


class _Line:
    """A connection to a server, dialled again when nothing comes: ZeroMQ does not come back by itself to one that did
    not let it in."""

    def __init__(self, origin: Origin, keys: Keys) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._origin, self._keys = origin, keys
        self._socket: Any = None
        self._heard = False
        self.dial()

    def dial(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
        self._socket = connect_dealer(self._context, self._origin.endpoint, b"fetch-" + os.urandom(8), self._keys)

    def ask(self, file: int, offset: int, length: int) -> bool:
        """False: it cannot be said now."""
        want = Want(self._origin.name, file, offset, length)
        try:
            self._socket.send(msgpack.packb(msgspec.to_builtins(want)), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def hear(self) -> tuple[Want, bytes] | None:
        """What came; None: nothing, for a while."""
        if not self._socket.poll(int(1e3 * (_AGAIN if self._heard else _FIRST))):
            return None
        self._heard = True
        frames = self._socket.recv_multipart()
        return read_want(frames[0]), frames[1] if len(frames) == 2 else b""

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()


def _fetch_file(line: _Line, number: int, fact: FileFact, out: BinaryIO) -> Iterator[int]:
    """Append what is missing of one file; yields how much is there. Chunks may come late or twice, but are written in
    order."""
    have = asked = out.tell()
    waiting: dict[int, bytes] = {}
    heard = time.monotonic()
    while have < fact.size:
        while asked < fact.size and asked - have < _AHEAD * CHUNK:
            length = min(CHUNK, fact.size - asked)
            if not line.ask(number, asked, length):
                break
            asked += length
        found = line.hear()
        if found is None:
            if time.monotonic() - heard > _PATIENCE:
                raise WireError(f"{fact.name}: nothing has come for {_PATIENCE:.0f} s")
            line.dial()
            asked, waiting = have, {}
            continue
        want, data = found
        if len(data) == want.length and want.file == number and want.offset >= have:
            waiting[want.offset] = data
            heard = time.monotonic()
        while have in waiting:
            have += out.write(waiting.pop(have))
            yield have
