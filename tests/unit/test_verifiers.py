"""Several verifiers behind one gateway: who gets a sequence, and where it goes when one of them ends."""

from __future__ import annotations

import asyncio

import pytest
import zmq
import zmq.asyncio

from hetero.config import make_config
from hetero.errors import ConfigError, MemoryShortage, SequenceFailed
from hetero.gateway.verifiers.pool import Verifiers
from hetero.gateway.verifiers.routing import Router
from hetero.gateway.verifiers.sequences import Live, ask
from hetero.placement.device import Device, Gpu, Inventory
from hetero.placement.nodes import DRAFTER, TARGET, Node
from hetero.planning.planner import Planner, make_plan
from hetero.planning.replicas import other_machines, shares_of
from hetero.workers.wire.codec import decode, encode
from hetero.workers.wire.messages import Cancel, Finished, Open, Ping, Pong, Resume, Sampling, Stats, Tokens

SAMPLING = Sampling(0.0)
SMALL = {"target": "builtin:toy", "draft": "none", "target_engine": "octet", "context": 2048}
STATS = Stats(2, 1.0, 4, 100.0, 4, 0, 0, 0, 0, 0.0)


# Routing


def test_sequences_spread_over_verifiers_that_know_nothing_of_them():
    router, load = Router(4), {0: 0, 1: 0, 2: 0}
    for n in range(9):
        load[router.choose([n] * 100, load)] += 1
    assert set(load.values()) == {3}


def test_the_next_turn_of_a_chat_goes_where_the_last_one_was():
    router = Router(2)
    chats = {n: [n] * 200 for n in range(6)}
    homes = {}
    for n, tokens in chats.items():
        homes[n] = router.choose(tokens, {0: 0, 1: 0, 2: 0})
        router.note(homes[n], tokens)
    for turn in range(1, 10):
        for n, tokens in chats.items():
            tokens += [turn] * 60
            assert router.choose(tokens, {0: 0, 1: 0, 2: 0}) == homes[n]
            router.note(homes[n], tokens)
    assert sorted(homes.values()) == [0, 0, 1, 1, 2, 2]


def test_no_sequence_waits_for_a_cached_beginning_and_a_common_first_line_draws_nobody():
    router = Router(2)
    router.note(0, [1] * 320)
    assert router.choose([1] * 320, {0: 1, 1: 0}) == 0
    assert router.choose([1] * 320, {0: 2, 1: 0}) == 1
    assert router.choose([1] * 64 + [2] * 300, {0: 1, 1: 0}) == 1
    router.forget(0)
    assert router.choose([1] * 320, {0: 1, 1: 0}) == 1


def test_what_is_remembered_of_a_verifier_is_bounded():
    router = Router(2)
    for n in range(400):
        router.note(0, [n] * 1024)
    assert len(router._seen[0]) == 8192
    assert router.choose([399] * 1024, {0: 1, 1: 0}) == 0 and router.choose([0] * 1024, {0: 1, 1: 0}) == 1


# Moving


class FakeVerifier:
    """Speaks a verifier's part: each sequence's tokens are 10, 11, 12, ... one a turn of ``speak``."""

    def __init__(self, context: zmq.asyncio.Context) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.endpoint = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"
        self.open: dict[int, tuple[bytes, int, int]] = {}  # peer, prompt, tokens
        self.heard: list[object] = []
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            peer, frame = await self.socket.recv_multipart()
            message = decode(frame)
            self.heard.append(message)
            opening = message.opening if isinstance(message, Resume) else message
            if isinstance(opening, Open):
                self.open[opening.seq] = (peer, len(opening.prompt), len(opening.committed))
            elif isinstance(message, Cancel):
                self.open.pop(message.seq, None)
            elif isinstance(message, Ping):
                await self.socket.send_multipart([peer, encode(Pong(1))])

    async def speak(self, most: int) -> None:
        for seq, (peer, prompt, count) in list(self.open.items()):
            if count >= most:
                continue
            tokens = Tokens(seq, 1, prompt + count, [10 + count], f"{count} ", [], None)
            await self.socket.send_multipart([peer, encode(tokens)])
            self.open[seq] = (peer, prompt, count + 1)
            if count + 1 == most:
                del self.open[seq]
                await self.socket.send_multipart([peer, encode(Finished(seq, 1, prompt + most, "length", "", STATS))])

    def close(self) -> None:
        self.task.cancel()
        self.socket.close(0)


async def read(verifiers: Verifiers, prompt: list[int]) -> tuple[list[int], str]:
    tokens, text = [], ""
    async for delta in verifiers.generate(ask(prompt, SAMPLING, 20)):
        tokens += delta.tokens
        text += delta.text
    return tokens, text


def test_sequences_of_a_verifier_that_ends_go_on_at_the_others_without_a_gap():
    async def play() -> None:
        context, verifiers = zmq.asyncio.Context(), Verifiers(places=4)
        fakes = [FakeVerifier(context) for _ in range(3)]
        for n, fake in enumerate(fakes):
            await verifiers.link(n, fake.endpoint)
        reading = [asyncio.create_task(read(verifiers, [n] * 5)) for n in range(6)]
        gone = None
        for turn in range(60):
            await asyncio.sleep(0.02)
            for fake in fakes:
                if fake is not gone:
                    await fake.speak(20)
            if turn == 8:
                assert [len(fake.open) for fake in fakes] == [2, 2, 2]
                gone = fakes[1]
                verifiers.lost(1)
        found = await asyncio.wait_for(asyncio.gather(*reading), 10)
        assert found == [(list(range(10, 30)), "".join(f"{n} " for n in range(20)))] * 6
        moved = [message for fake in (fakes[0], fakes[2]) for message in fake.heard if isinstance(message, Resume)]
        assert len(moved) == 2 and all(message.opening.committed for message in moved) and verifiers.live == 0
        await verifiers.close()
        for fake in fakes:
            fake.close()
        context.term()

    asyncio.run(play())


def test_sequences_wait_while_there_is_no_verifier_and_one_that_ends_three_is_given_up():
    async def play() -> None:
        context, verifiers = zmq.asyncio.Context(), Verifiers(places=4)
        waits = asyncio.create_task(read(verifiers, [1] * 5))
        await asyncio.sleep(0.01)
        assert verifiers.live == 1 and not waits.done()
        for _ in range(3):
            fake = FakeVerifier(context)
            await verifiers.link(0, fake.endpoint)
            for _ in range(100):
                await asyncio.sleep(0.01)
                if fake.open:
                    break
            assert len(fake.open) == 1
            verifiers.lost(0)
            fake.close()
        with pytest.raises(SequenceFailed, match="the verifier ended 3 times at this request"):
            await waits
        assert verifiers.live == 0
        await verifiers.close()
        context.term()

    asyncio.run(play())


def test_a_sequence_nobody_reads_any_more_is_cancelled_where_it_is():
    async def play() -> None:
        context, verifiers = zmq.asyncio.Context(), Verifiers(places=4)
        fakes = [FakeVerifier(context) for _ in range(2)]
        for n, fake in enumerate(fakes):
            await verifiers.link(n, fake.endpoint)
        reading = asyncio.create_task(read(verifiers, [1] * 5))
        for _ in range(100):
            await asyncio.sleep(0.01)
            if any(fake.open for fake in fakes):
                break
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        for _ in range(100):
            await asyncio.sleep(0.01)
            if not any(fake.open for fake in fakes):
                break
        assert not any(fake.open for fake in fakes) and verifiers.live == 0
        assert sum(isinstance(message, Cancel) for fake in fakes for message in fake.heard) == 1
        await verifiers.close()
        for fake in fakes:
            fake.close()
        context.term()

    asyncio.run(play())


def test_only_a_verifier_that_brought_nothing_counts_against_a_sequence():
    live = Live(ask([1], SAMPLING, 20))
    for n in range(10):
        assert isinstance(live.asked(), Open if n == 0 else Resume)
        live.tokens.append(n)
        assert live.bereft(True)
    for _ in range(9):  # it waited for a place each time: it is not to blame
        assert live.asked() and live.bereft(False)
    assert [live.asked() and live.bereft(True) for _ in range(3)] == [True, True, False]


# Places


def node(name: str, cpus: int, *marks: str, here: bool = False) -> Node:
    return Node(name, f"192.0.2.{len(name)}", frozenset({name}), frozenset(marks), cpus=cpus, here=here)


def test_further_verifiers_go_to_marked_machines_then_to_large_ones_and_not_to_the_drafters():
    nodes = [node("a", 8), node("b", 16), node("c", 4, TARGET), node("d", 4, DRAFTER), node("e", 2, TARGET)]
    assert [one.id for one in other_machines(nodes, nodes[2], nodes[3], 3)] == ["e", "b"]
    assert [one.id for one in other_machines(nodes, nodes[1], nodes[0], 3)] == ["c", "e"]
    with pytest.raises(ConfigError, match="verifiers: 6 want a machine each, and 4 of the cluster's 5 are free"):
        other_machines(nodes, nodes[2], nodes[3], 6)


def test_cores_are_shared_out_and_gpus_given_by_equal_numbers():
    inventory = Inventory(tuple(range(8)), 1 << 36, tuple(Gpu("cuda", n, "card", 1 << 34) for n in range(5)))
    assert [one.indices for one in shares_of(Device("cpu", (0, 1, 2, 3, 4)), 2, inventory, [])] == [(0, 1), (2, 3)]
    found = shares_of(Device("cuda", (0, 1)), 2, inventory, [Device("cuda", (2,))])
    assert [one.indices for one in found] == [(0, 1), (3, 4)]
    with pytest.raises(ConfigError, match="3 want 2 GPUs each, and 2 are free beside cuda:0-1"):
        shares_of(Device("cuda", (0, 1)), 3, inventory, [Device("cuda", (2,))])
    with pytest.raises(ConfigError, match="verifiers: 3 want a core each, and the target has 2"):
        shares_of(Device("cpu", (0, 1)), 3, inventory, [])


def test_a_plan_of_two_verifiers_on_marked_machines_and_a_drafter_for_both():
    nodes = [node("a", 8, TARGET, here=True), node("b", 4, TARGET), node("c", 4, DRAFTER)]
    config = make_config(
        {"target": "builtin:toy", "verifiers": 2, "parallel": 3, "address": "auto", "target_engine": "octet"}
    )
    plan = make_plan(config, Inventory((0, 1), 8 << 30), nodes)
    assert [(one.node.id, one.name, one.spec.index, one.spec.engine) for one in plan.targets] == [
        ("a", "target", 0, "octet"), ("b", "target-1", 1, "octet"),
    ]  # fmt: skip
    assert [one.spec.host for one in plan.targets] == [nodes[0].address, nodes[1].address]
    assert plan.drafter.node.id == "c" and plan.drafter.spec.sequences == 6
    assert [one.spec.sequences for one in plan.targets] == [3, 3]
    planner = Planner(config, Inventory((0, 1), 8 << 30))
    planner.plan(nodes)
    again = planner.target_again(plan.replicas[0], nodes[1:])
    assert again.spec.index == 1 and again.node.id == "b"
    assert planner.target_again(plan.replicas[0], [nodes[2]]) is None


def test_the_memory_of_all_verifiers_counts():
    config = make_config({"target": "builtin:toy", "draft": "none", "verifiers": 2, "target_engine": "octet"})
    one = make_plan(make_config({**SMALL, "verifiers": 1}), Inventory((0, 1), 8 << 30))
    need = one.target.memory.total
    assert len(make_plan(config, Inventory((0, 1), 3 * need)).targets) == 2
    with pytest.raises(MemoryShortage, match=r"target .* and target"):
        make_plan(make_config({**SMALL, "verifiers": 2}), Inventory((0, 1), int(1.5 * need)))


def test_no_link_is_made_once_it_is_closed():
    async def play() -> None:
        context, verifiers = zmq.asyncio.Context(), Verifiers()
        fake = FakeVerifier(context)
        linking = asyncio.create_task(verifiers.link(0, fake.endpoint))
        await asyncio.wait_for(verifiers.close(), 5)
        await asyncio.wait_for(linking, 5)
        fake.close()
        context.term()

    asyncio.run(play())


def test_the_drafter_goes_where_no_verifier_is():
    nodes = [node("a", 8, TARGET, here=True), node("b", 8, TARGET), node("c", 2)]
    config = make_config({"target": "builtin:toy", "verifiers": 2, "address": "auto", "target_engine": "octet"})
    plan = make_plan(config, Inventory((0, 1), 8 << 30), nodes)
    assert [one.node.id for one in plan.placements] == ["a", "b", "c"]
    alone = make_config({"target": "builtin:toy", "verifiers": 2, "draft": "none"})
    gpus = (Gpu("cuda", 0, "a", 8 << 30), Gpu("cuda", 1, "b", 8 << 30))
    assert shares_of(Device("cuda", (0,)), 2, Inventory((0, 1), 8 << 30, gpus), []) == [
        Device("cuda", (0,)), Device("cuda", (1,)),
    ]  # fmt: skip
    assert len(make_plan(alone, Inventory((0, 1), 8 << 30)).targets) == 2
