"""Two real workers in one process, over real sockets."""

from __future__ import annotations

from helpers.real_workers import Client, opening, until, workers

from hetero.workers.runtime.spec import WorkerSpec
from hetero.workers.wire.codec import encode
from hetero.workers.wire.messages import Ping


def test_table_pair_over_sockets_is_independent_of_strategy():
    found = []
    for strategy, quick in (("off", False), ("serial", False), ("ahead", False), ("ahead", True)):
        target = WorkerSpec("target", "", "table", strategy, 4)
        drafter = None if strategy == "off" else WorkerSpec("drafter", "", "table", strategy, 4)
        with workers(target, drafter, quick) as (verifier, *_), Client(verifier.status().endpoint) as client:
            if drafter:
                until(lambda v=verifier: v.status().drafters)
            asked = [opening(10 + n, [n, n + 1], seed=n) for n in range(6)]
            answers = client.ask(*asked)
            found.append([answers[o.seq][0] for o in asked])
            if drafter and not quick:
                accepted = sum(answers[o.seq][2].stats.draft_n_accepted for o in asked)
                assert accepted > (20 if strategy == "serial" else 0)
            until(lambda v=verifier: v.status().idle)
            # Garbage on the socket is dropped and counted, and hurts nobody.
            for frame in (b"", b"\x80\x04N.", b"x" * 1000, encode(Ping("x", 1, []))[:-1]):
                client.socket.send(frame)
            client.socket.send_multipart([b"a", b"b"])
            until(lambda v=verifier: v.status().dropped >= 5)
            # So is what was sent before: nothing begins again.
            client.socket.send(encode(asked[0]))
            until(lambda v=verifier: v.status().dropped >= 6)
            assert verifier.status().active == 0
    assert found[0] == found[1] == found[2] == found[3]
    assert all(found[0])
