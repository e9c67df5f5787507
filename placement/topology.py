"""The cores of a machine: which share a physical core, which are slow, and how many a container may use at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import floor

FAST = 0.8  # of the fastest core's speed: slower ones hold a barrier of fast ones up


@dataclass(frozen=True)
class Core:
    """A hardware thread as the system numbers it. ``physical``: the lowest number of those that share its core;
    ``numa``: the node of memory that is near; ``speed``: relative to the machine's fastest core."""

    number: int
    physical: int
    numa: int = 0
    speed: float = 1.0


@dataclass(frozen=True)
class Topology:
    """The hardware threads this process may use. ``quota``: so many cores' time it gets (0: all of them)."""

    cores: tuple[Core, ...]
    quota: float = 0.0

    @classmethod
    def plain(cls, numbers: Sequence[int]) -> Topology:
        """Cores of which nothing else is known."""
        return cls(tuple(Core(number, number) for number in numbers))

    @property
    def fast(self) -> tuple[int, ...]:
        """One hardware thread of each fast core, as many as the quota allows: what one team of threads should use."""
        top = max((core.speed for core in self.cores), default=1.0)
        return self._firsts(lambda core: core.speed >= FAST * top)[: self._most]

    @property
    def slow(self) -> tuple[int, ...]:
        """One hardware thread of each slow core, as many as the quota leaves beside the fast ones."""
        top = max((core.speed for core in self.cores), default=1.0)
        found = self._firsts(lambda core: core.speed < FAST * top)
        return found[: max(0, self._most - len(self.fast))]

    def beside(self, taken: Collection[int]) -> tuple[int, ...]:
        """The fast cores that share nothing with those taken."""
        busy = {core.physical for core in self.cores if core.number in taken}
        return tuple(n for n in self.fast if self._of(n).physical not in busy)

    def near(self, numbers: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """Cores by the node of memory that is near them."""
        found: dict[int, tuple[int, ...]] = {}
        for number in numbers:
            numa = self._of(number).numa
            found[numa] = (*found.get(numa, ()), number)
        return found

    @property
    def _most(self) -> int:
        return max(1, floor(self.quota)) if self.quota else len(self.cores)

    def _firsts(self, wanted: Callable[[Core], bool]) -> tuple[int, ...]:
        seen: dict[int, int] = {}
        for core in sorted(self.cores, key=lambda core: core.number):
            if wanted(core):
                seen.setdefault(core.physical, core.number)
        return tuple(seen.values())

    def _of(self, number: int) -> Core:
        return next((core for core in self.cores if core.number == number), Core(number, number))
