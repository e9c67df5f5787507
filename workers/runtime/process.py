"""A worker as a plain process, without Ray: ``python -P -m hetero.workers SPEC``, SPEC as JSON (``runtime.spec``).

Prints its status as one JSON line when it is loaded. Lines on standard input are orders: ``link INDEX ENDPOINT`` tells
a drafter where a verifier listens, ``allow KEY ...`` whose keys a secure verifier lets in, ``status`` asks for another
status line; the end of input stops the worker.
"""

from __future__ import annotations

import json
import sys

from hetero.workers.runtime.actor import WorkerActor


def main() -> int:
    """Run until standard input ends; returns the exit status."""
    actor = WorkerActor()
    actor.begin(json.loads(sys.argv[1]))
    status = actor.ready()
    print(json.dumps(status), flush=True)
    if status["phase"] != "ready":
        return 1
    for line in sys.stdin:
        order, _, what = line.strip().partition(" ")
        if order == "link":
            index, _, endpoint = what.partition(" ")
            actor.link(endpoint, int(index))
        elif order == "allow":
            actor.allow(what.split())
        elif order == "status":
            print(json.dumps(actor.status()), flush=True)
    actor.stop()
    return 0
