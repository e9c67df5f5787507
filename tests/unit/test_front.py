"""Several models behind one door: who gets a request, and what is heard while a model loads."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time

import httpx
import pytest

from hetero import fleet as fleets
from hetero.config import make_config
from hetero.errors import ConfigError, HeteroError, MemoryShortage
from hetero.fleet import Fleet, further
from hetero.gateway import front as fronts
from hetero.gateway.front import Front


def app_called(name: str, status: int = 200):
    """Tells its name and what it was sent."""

    async def app(scope, receive, send):
        message = await receive()
        answer = json.dumps({"by": name, "got": message.get("body", b"").decode(errors="replace")}).encode()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    return app


class FakeGuest:
    def __init__(self, name: str, seconds: float = 0.0, fails: str = "", status: int = 200) -> None:
        self.name, self.app, self.seconds, self.fails = name, None, seconds, fails
        self.asked = self.loads = 0
        self.full = False
        self.status = status

    async def load(self):
        self.loads += 1
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise HeteroError(self.fails)
        self.app = app_called(self.name, self.status)
        return self.app

    @contextlib.contextmanager
    def using(self):
        self.asked += 1
        yield
        self.asked -= 1


async def ask(guests, method="POST", path="/v1/chat/completions", **more) -> httpx.Response:
    transport = httpx.ASGITransport(app=Front(app_called("first"), guests, 1 << 20))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, **more)


def test_a_request_goes_to_the_model_it_names_whole():
    guest = FakeGuest("coder")
    for name, by in (("coder", "coder"), ("coder:latest", "coder"), ("other", "first"), (None, "first")):
        body = {"model": name, "messages": ["x" * 5000]}
        found = asyncio.run(ask([guest], json=body)).json()
        assert found["by"] == by and json.loads(found["got"]) == body
    assert guest.asked == 0 and guest.loads == 2
    for odd in ({"stream": None}, {"stream": "yes"}, {"stream": 2}, {"name": 3}):
        assert asyncio.run(ask([guest], json={"model": "coder", **odd})).json()["by"] == "coder"
    assert asyncio.run(ask([guest], path="/api/show", json={"name": "coder"})).json()["by"] == "coder"
    guest.full = True
    refused = asyncio.run(ask([guest], json={"model": "coder"}))
    assert refused.status_code == 429 and "retry-after" in refused.headers
    guest.full = False
    packed = gzip.compress(json.dumps({"model": "coder"}).encode())
    assert asyncio.run(ask([guest], content=packed, headers={"content-encoding": "gzip"})).json()["by"] == "coder"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 3}', b'{"model": ' + b"[" * 4000, b"\xff\xfe"])
def test_what_is_no_body_is_the_first_models_to_refuse(content):
    assert asyncio.run(ask([FakeGuest("coder")], content=content)).json()["by"] == "first"


def test_get_asks_who_is_loaded_and_loads_nothing():
    guest = FakeGuest("coder")
    assert asyncio.run(ask([guest], "GET", "/metrics")).json()["by"] == "first"
    refused = asyncio.run(ask([guest], "GET", "/metrics?model=coder"))
    assert refused.status_code == 503 and "coder is not loaded" in refused.json()["error"]["message"]
    guest.app = app_called("coder")
    assert asyncio.run(ask([guest], "GET", "/metrics?model=coder")).json()["by"] == "coder"
    assert guest.loads == 0


def test_a_stream_hears_comments_while_its_model_loads_then_the_answer(monkeypatch):
    monkeypatch.setattr(fronts, "_QUIET", 0.05)
    found = asyncio.run(ask([FakeGuest("coder", 0.2)], json={"model": "coder", "stream": True}))
    assert found.status_code == 200 and found.headers["content-type"].startswith("text/event-stream")
    comments, _, rest = found.text.rpartition(": loading\n\n")
    assert comments.count(": loading") >= 1 and json.loads(rest)["by"] == "coder"
    quick = asyncio.run(ask([FakeGuest("coder")], json={"model": "coder", "stream": True}))
    assert ": loading" not in quick.text
    # Ollama's streams are lines, which know no comments.
    lines = asyncio.run(ask([FakeGuest("coder", 0.2)], path="/api/chat", json={"model": "coder", "stream": True}))
    assert ": loading" not in lines.text and lines.json()["by"] == "coder"


def test_what_fails_is_told_once_in_the_streams_way(monkeypatch):
    broken = FakeGuest("coder", fails="no room")
    plain = asyncio.run(ask([broken], json={"model": "coder"}))
    assert plain.status_code == 503 and "coder cannot be loaded: no room" in plain.json()["error"]["message"]
    monkeypatch.setattr(fronts, "_QUIET", 0.05)
    broken.seconds = 0.2
    stream = asyncio.run(ask([broken], json={"model": "coder", "stream": True}))
    assert (
        stream.status_code == 200 and "no room" in json.loads(stream.text.rpartition("data: ")[2])["error"]["message"]
    )
    refuses = FakeGuest("coder", 0.2, status=400)
    late = asyncio.run(ask([refuses], json={"model": "coder", "stream": True}))
    assert json.loads(late.text.rpartition("data: ")[2])["by"] == "coder"


# Who is loaded


class Session:
    """Loaded at once, with nothing under way."""

    failure = None

    class verifiers:
        live = 0


@pytest.fixture
def fleet(monkeypatch, tmp_path):
    """Three further models, of which two fit."""
    room = {"free": 2}

    async def up(guest, found, options, say):
        room["free"] -= 1
        guest.session, guest.app = Session(), app_called(guest.name)

    async def down(guest):
        room["free"] += guest.session is not None
        guest.session = guest.app = None

    def plan(self, config, freed):
        if room["free"] + len(freed) < config.parallel - 3:
            raise MemoryShortage("it does not fit")
        return type("Placed", (), {"plan": None})

    monkeypatch.setattr(fleets.Guest, "up", up)
    monkeypatch.setattr(fleets.Guest, "down", down)
    monkeypatch.setattr(Fleet, "_plan", plan)
    monkeypatch.setattr(fleets, "_held", lambda guests: {guest.name: 1 for guest in guests})
    monkeypatch.setattr(fleets, "_LOOK", 0.02)
    monkeypatch.setattr(fleets, "_FREED", 0.2)
    files = []
    for name in ("a", "b", "c"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"target: builtin:toy\nalias: {name}\nkeep_alive: {-1 if name == 'a' else 1000}\n")
        files.append(str(file))
    said: list[str] = []

    def make(**more):
        found = Fleet(make_config({"also_serve": files, **more}), "first", None, lambda *_: None, said.append)
        found.said = said
        found._first_there.set()
        return found

    return make


def test_the_one_that_rested_longest_makes_room_but_neither_one_that_is_asked_nor_one_that_stays(fleet):
    async def play() -> None:
        all_ = fleet()
        a, b, c = all_.guests
        await a.load()
        await b.load()
        await c.load()
        assert [card.loaded for card in all_.cards] == [
            True,
            False,
            True,
        ] and "b: unloaded: c wants its memory" in all_.said
        with c.using(), pytest.raises(MemoryShortage):
            await b.load()
        c.session.verifiers = type("busy", (), {"live": 1})
        with pytest.raises(MemoryShortage):
            await b.load()
        assert any("b: it cannot be loaded: it does not fit" in line for line in all_.said)
        await all_.stop()
        assert not any(card.loaded for card in all_.cards)

    asyncio.run(play())


def test_it_is_loaded_once_for_all_who_ask_also_when_the_first_hangs_up(fleet):
    async def play() -> None:
        all_ = fleet()
        b = all_.guests[1]
        asking = [asyncio.create_task(b.load()) for _ in range(5)]
        await asyncio.sleep(0)
        asking[0].cancel()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError) and all(app is b.app for app in found[1:])
        assert sum("loaded in" in line for line in all_.said) == 1

    asyncio.run(play())


def test_those_that_stay_are_there_from_the_start_and_others_leave_when_they_rested_long(fleet):
    async def play() -> None:
        all_ = fleet()
        a, b, _ = all_.guests
        keeping = asyncio.create_task(all_.keep())
        await b.load()
        b.config = make_config({"keep_alive": 0.1})
        with b.using():
            await asyncio.sleep(0.3)
            assert a.app is not None and b.app is not None
        end = time.monotonic() + 10
        while b.app is not None:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
        assert a.app is not None and "b: unloaded: nobody asks for it" in all_.said
        keeping.cancel()

    asyncio.run(play())


def test_settings_of_further_models_are_checked_before_anything_loads(tmp_path, fleet):
    file = tmp_path / "m.yaml"
    for text, words in (
        ("port: 3", "port is the server's"),
        ("no_such: 3", "unknown key 'no_such'"),
        ("strategy: auto", "strategy auto is chosen at the start"),
        ("parallel: 0", "parallel: Expected `int` >= 1"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            further(make_config({"also_serve": [str(file)]}))
    with pytest.raises(ConfigError, match=r"[Nn]o such file"):
        further(make_config({"also_serve": [str(tmp_path / "none.yaml")]}))
    with pytest.raises(ConfigError, match="served on one machine"):
        further(make_config({"also_serve": ["builtin:toy"], "cluster": True}))
    with pytest.raises(ConfigError, match="two models are called a"):
        Fleet(make_config({"also_serve": [str(tmp_path / "a.yaml")]}), "a", None, lambda *_: None, print)
    (own,) = further(make_config({"also_serve": ["builtin:toy"], "share_lookup": True, "parallel": 9}))
    assert own.target == own.alias == "builtin:toy" and own.share_lookup and own.parallel == 4 and own.keep_alive == 300


def test_nothing_loads_before_the_first_model_is_there_and_waiting_ends(fleet):
    async def play() -> None:
        all_ = fleet()
        all_._first_there.clear()
        b = all_.guests[1]
        b.config = make_config({"timeout": 0.1})
        with pytest.raises(HeteroError, match=r"not there within 0\.1 s"):
            await b.load()
        assert b.app is None
        all_._first_there.set()
        assert await b.load() is b.app

    asyncio.run(play())


def test_what_can_never_fit_unloads_nobody_and_what_failed_is_loaded_anew(fleet):
    async def play() -> None:
        all_ = fleet()
        _, b, c = all_.guests
        await b.load()
        c.config = make_config({"parallel": 9})  # of the room's two it wants six
        with pytest.raises(MemoryShortage):
            await c.load()
        assert b.app is not None
        b.session.failure, before = "the verifier is given up", b.app
        assert await b.load() is not before and b.session.failure is None

    asyncio.run(play())
