"""Verifiers, drafters and a client on one virtual clock: what benchmarks and tests drive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hetero.workers.decoding.drafter import Drafter
from hetero.workers.decoding.policy.strategy import Strategy
from hetero.workers.decoding.policy.tuning import MOST_LEAVES
from hetero.workers.decoding.proposers.past import Past
from hetero.workers.decoding.trace import Trace
from hetero.workers.decoding.verifier import Verifier
from hetero.workers.models.vocabulary import Vocabulary
from hetero.workers.simulation.client import CLIENT, Route, SimulatedClient
from hetero.workers.simulation.clock import VirtualClock
from hetero.workers.simulation.devices import Device
from hetero.workers.simulation.links import Link, Network
from hetero.workers.simulation.worker import SimulatedWorker
from hetero.workers.wire.codec import decode, encode
from hetero.workers.wire.messages import Close, Commit, Draft, Hint, Message, Open

MakeDevice = Callable[[], Device]  # called again when a worker is born again


@dataclass(frozen=True)
class Setting:
    """What a pair is. Several ``drafters`` all serve all ``verifiers``.

    ``link`` lies between workers, ``client_link`` between them and the client. ``coded``: messages go through the
    codec, which checks them and takes its time. ``tree_nodes``, ``leaves``, ``cached``: see ``Verifier``, ``Drafter``;
    ``past``: tokens of answers that verifiers look up (None: they look nothing up). ``twist`` may change what a drafter
    says on its way; ``worker`` is what drives each machine. ``route``: see ``SimulatedClient``. ``serves``: whether a
    drafter serves a verifier, by their numbers (None: all serve all); ``link_of``: the link between two of them, where
    they are not all alike; ``liars``: drafters whose words ``twist`` changes (None: all).
    """

    strategy: Strategy
    vocabulary: Vocabulary
    verifiers: Sequence[MakeDevice]
    drafters: Sequence[MakeDevice]
    link: Link = field(default_factory=Link)
    client_link: Link = field(default_factory=Link)
    seed: int = 0
    coded: bool = True
    ping: float = 1.0  # seconds between the client's signs of life
    tree_nodes: int = 2048
    leaves: int = MOST_LEAVES
    cached: int = 0
    past: int | None = None
    trace: Trace | None = None
    twist: Callable[[Draft], Draft] | None = None
    worker: type[SimulatedWorker] = SimulatedWorker
    route: Route | None = None
    serves: Callable[[int, int], bool] | None = None
    link_of: Callable[[int, int], Link] | None = None
    liars: frozenset[int] | None = None


class SimulatedPair:
    """Workers are named b"verifier-0", b"drafter-0", ...; they can be killed and are born again."""

    def __init__(self, setting: Setting) -> None:
        self.clock = VirtualClock()
        self.client = SimulatedClient(
            self.clock, lambda to, message: self._send(to, CLIENT, message), setting.route, self._living
        )
        self.workers: dict[bytes, SimulatedWorker] = {}
        self.drafted = 0  # draft tokens that were sent
        self._setting = setting
        self._network = Network(self.clock, setting.seed)
        self._network.attach(CLIENT, self._to_client)
        self._epoch = 0
        self._makers = {b"verifier-%d" % n: make for n, make in enumerate(setting.verifiers)}
        self._makers |= {b"drafter-%d" % n: make for n, make in enumerate(setting.drafters)}
        for name in self._makers:
            self.bear(name)
        for name in self._verifiers:
            self.client.keep_alive(name, setting.ping)

    def __getitem__(self, name: bytes) -> SimulatedWorker:
        return self.workers[name]

    @property
    def _verifiers(self) -> list[bytes]:
        return [name for name in self._makers if name.startswith(b"verifier")]

    def bear(self, name: bytes) -> None:
        """Start a worker, or its next incarnation."""
        again = name in self.workers
        self._epoch += 1
        device = self._makers[name]()
        setting, index = self._setting, _number(name)
        machine: Verifier | Drafter
        if name.startswith(b"verifier"):
            machine = Verifier(
                self._epoch, device.limits, setting.vocabulary, setting.strategy, setting.tree_nodes, setting.trace,
                setting.cached, Past(setting.past) if setting.past is not None else None,
            )  # fmt: skip
        else:
            machine = Drafter(
                self._epoch, device.limits, setting.vocabulary.ends, setting.strategy, setting.leaves, setting.trace,
                setting.cached, index,
            )  # fmt: skip
            for verifier in self._verifiers:
                if self._serves(name, verifier):
                    machine.linked(verifier)
        worker = setting.worker(
            self.clock, machine, device, lambda to, message: self._send(to, name, message), _unpacked
        )
        self.workers[name] = worker
        self._network.attach(name, worker.receive)
        self.clock.after(0.0, worker.poke)
        if again and isinstance(machine, Verifier):
            self.client.resume(name)
            for other in self.workers.values():
                if isinstance(other.machine, Drafter) and self._serves(b"drafter-%d" % other.machine.index, name):
                    other.machine.linked(name)

    def kill(self, name: bytes, seconds: float, noticed: float = 0.0) -> None:
        """A worker dies, and its next incarnation is born ``seconds`` later; the client hears of it after ``noticed``
        seconds."""
        worker = self.workers[name]
        worker.alive = False
        self._network.detach(name)
        self.clock.after(noticed, lambda: self.client.lost(name) if self.workers[name] is worker else None)
        self.clock.after(seconds, lambda: self.bear(name))

    def cut(self, one: bytes, other: bytes, seconds: float) -> None:
        """Two workers do not hear of each other for so long."""
        self._network.cut(one, other, seconds)

    def _living(self) -> list[bytes]:
        return [name for name in self._verifiers if self.workers[name].alive]

    def play(self, until: float = 1e9) -> bool:
        """Go on until every sequence has ended, or a virtual time; whether they all have."""
        return self.clock.run(lambda: self.client.done, until)

    def settle(self, seconds: float = 3.0) -> None:
        """Let closes arrive and be carried out."""
        self.clock.run(lambda: False, self.clock.now + seconds)

    def _send(self, to: bytes, sender: bytes, message: Message) -> None:
        if isinstance(message, Draft):
            self.drafted += len(message.tokens)
            liars = self._setting.liars
            if self._setting.twist is not None and (liars is None or _number(sender) in liars):
                message = self._setting.twist(message)
        of_client = CLIENT in (to, sender)
        link = self._setting.client_link if of_client else self._link(to, sender)
        exposed = not of_client and isinstance(message, Draft | Commit | Hint | Open | Close)
        self._network.send(to, sender, encode(message) if self._setting.coded else message, link, exposed)

    def _serves(self, drafter: bytes, verifier: bytes) -> bool:
        serves = self._setting.serves
        return serves is None or serves(_number(drafter), _number(verifier))

    def _link(self, one: bytes, other: bytes) -> Link:
        if self._setting.link_of is None:
            return self._setting.link
        drafter, verifier = sorted((one, other))  # "drafter-..." comes first
        return self._setting.link_of(_number(drafter), _number(verifier))

    def _to_client(self, sender: bytes, frame: bytes | Message) -> None:
        self.client.receive(sender, _unpacked(frame), self.workers[sender].machine.epoch)


def _number(name: bytes) -> int:
    return int(name.rpartition(b"-")[2])


def _unpacked(frame: bytes | Message) -> Message:
    return decode(frame) if isinstance(frame, bytes) else frame
