"""What the verifier says to its peers: methods return the messages, and no two machines share a list."""

from __future__ import annotations

import pytest

from hetero.workers.decoding.drafter import Drafter
from hetero.workers.decoding.peers import ANSWERS, Drafters, Gateways
from hetero.workers.decoding.policy.strategy import strategy
from hetero.workers.decoding.verifier import Verifier
from hetero.workers.engines.base import EngineLimits
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.wire.messages import Close, Failed, Open, Ping, Pong, Sampling

LIMITS = EngineLimits(8, 100, 16, 64, 4)
VOCABULARY = Vocabulary([b"x"] * 8, frozenset())
OPENING = Open(5, 0, [1, 2], [], Sampling(0.0), 20, [])


def verifier(name: str = "ahead") -> Verifier:
    return Verifier(9, LIMITS, VOCABULARY, strategy(name))


def test_a_ping_is_answered_by_what_the_drafter_lacks_and_what_it_should_forget():
    drafters = Drafters(9)
    assert drafters.pinged(b"d", Ping("drafter", 1, [(77, 3)]), {}, 0.0) == [(b"d", Close(77, 9))]
    assert [peer.index for peer in drafters] == [0]


def test_another_incarnation_takes_the_place_of_the_last_and_another_index_does_not():
    drafters = Drafters(9)
    for socket, epoch, index in ((b"a", 1, 0), (b"b", 2, 1), (b"c", 3, 0)):
        drafters.pinged(socket, Ping("drafter", epoch, [], index), {}, 0.0)
    assert {peer.index: peer.socket for peer in drafters} == {0: b"c", 1: b"b"}
    assert drafters.at(b"a") is None


def test_a_gateway_is_told_what_is_not_known():
    sends = Gateways(9).mend(b"g", Ping("gateway", 0, [(1, 5), (2, 5)]), {}, {2})
    assert [(to, message.seq) for to, message in sends] == [(b"g", 1)] and isinstance(sends[0][1], Failed)


def test_one_ping_brings_so_many_answers_at_most():
    strange = [(n, 1) for n in range(65536)]
    assert len(Drafters(9).pinged(b"d", Ping("drafter", 1, strange), {}, 0.0)) == ANSWERS
    assert len(Gateways(9).mend(b"g", Ping("gateway", 0, strange), {}, ())) == ANSWERS
    same = Gateways(9).mend(b"g", Ping("gateway", 0, [(7, 1)] * 65536), {}, ())
    assert len(same) == 1


@pytest.mark.parametrize("role", ["verifier", "drafter"])
def test_a_step_gives_its_messages_away(role):
    if role == "verifier":
        machine, peer, messages = verifier(), b"d", [Ping("drafter", 1, []), Ping("drafter", 1, [(3, 1)])]
    else:
        machine, peer = Drafter(1, LIMITS, frozenset(), strategy("ahead")), b"v"
        machine.linked(peer)
        messages = [Pong(4), OPENING]
    taken = []
    for now, message in enumerate(messages):
        machine.receive(peer, message, float(now))
        sends = machine.step(float(now)).sends
        assert sends
        taken.append((sends, list(sends)))
    assert len({id(sends) for sends, _ in taken}) == len(taken)
    assert all(sends == as_taken for sends, as_taken in taken)  # nobody adds to or clears what was given away


def test_one_that_joins_late_gets_what_is_there():
    machine = verifier()
    machine.receive(b"g", OPENING, 0.0)
    machine.step(0.0)
    machine.receive(b"d", Ping("drafter", 1, [], 3), 0.1)
    sent = [message for to, message in machine.step(0.1).sends if to == b"d"]
    assert [type(message) for message in sent] == [Pong, Open] and sent[1].prompt == [1, 2]
