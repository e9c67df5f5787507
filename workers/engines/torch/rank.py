"""A further rank of an engine over several devices: ``python -m hetero.workers.engines.torch.rank``.

Reads from its standard input, as a line of JSON, what to load and whose orders to take; ends when that input does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from hetero.workers.errors import EngineError
from hetero.workers.wire import orders
from hetero.workers.wire.sockets import Keys, connect_dealer

if TYPE_CHECKING:
    from hetero.workers.engines.torch.engine import TorchEngine


def main() -> None:
    """Serve until the input ends."""
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    if asked["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, asked["cores"])
    import torch  # counts the cores once they are chosen

    from hetero.workers.engines.torch.collectives import Team, enter, loaded
    from hetero.workers.engines.torch.engine import TorchEngine, TorchSettings

    torch.set_num_threads(max(1, len(asked["cores"])))
    team = Team(asked["rank"], asked["size"], asked["tensor"])
    keys = Keys(asked["public"], asked["secret"].encode())
    socket = connect_dealer(zmq.Context(), asked["endpoint"], b"rank-%d" % team.rank, keys)
    settings = TorchSettings(**asked["settings"])
    enter(team, Path(asked["meeting"]), team.device(settings.device))
    engine = TorchEngine(Path(asked["path"]), settings, team=team)
    loaded()
    socket.send(orders.encode_order(orders.Ready(team.rank)))
    while True:
        order = orders.decode_order(socket.recv())
        try:
            _obey(engine, order)
        except EngineError as error:
            if isinstance(error.__cause__, RuntimeError):  # within a forward: the others are elsewhere now
                raise
            # Refused between two forwards of a call, by rank 0, too: it has told whoever asked.


def _obey(engine: TorchEngine, order: Any) -> None:
    from hetero.workers.engines.base import Row

    match order:
        case orders.Prefill(seq, tokens, every):
            engine.prefill(seq, tokens, every)
        case orders.Extend(calibrate, rows):
            found = []
            for own in calibrate:
                if engine.length(own.seq) != own.base:
                    raise RuntimeError(f"out of step: {own.base} tokens are committed, not {engine.length(own.seq)}")
                parents = [own.parent, *own.nodes]
                found += [
                    Row(own.seq, node, parent, token, committed=True)
                    for node, parent, token in zip(own.nodes, parents, own.tokens, strict=False)
                ]
            engine.extend([*found, *(Row(*row) for row in rows)])
        case orders.Commit(seq, node, keep):
            engine.commit(seq, node, keep)
        case orders.Close(seq):
            engine.close(seq)
        case orders.Save(seq, key, length):
            engine.save_prefix(seq, key, length)
        case orders.Load(seq, key, length):
            engine.load_prefix(seq, key, length)
        case orders.Drop(key):
            engine.drop_prefix(key)


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
