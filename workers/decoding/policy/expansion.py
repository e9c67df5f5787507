"""How a drafter's tree grows: which nodes to expand next, and which of their candidates to add.

The strategy picks the policy. A node's value is the calibrated chance that the target reaches it, so that leaves of
several sequences can be compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from heapq import heapify, heappop, heappush

from hetero.workers.decoding.policy.calibration import Calibration
from hetero.workers.decoding.policy.strategy import GrowthRule, Strategy
from hetero.workers.decoding.policy.tuning import BRANCH_WIDTH, RANKS, REACH_FLOOR
from hetero.workers.decoding.tree import DraftTree
from hetero.workers.sampling.sampler import Candidates


class ExpansionPolicy(ABC):
    """Grows one tree. Leaves are given out by ``leaves``, and come back by ``put_back`` or ``expanded``."""

    width = 1  # candidates wanted per expansion

    def __init__(self, tree: DraftTree, calibration: Calibration, ends: frozenset[int]) -> None:
        self._tree = tree
        self._calibration = calibration
        self._ends = ends
        self._seen: dict[int, Candidates] = {}  # of expanded nodes

    @abstractmethod
    def leaves(self, most: int) -> list[tuple[float, int]]:
        """Up to ``most`` nodes to expand, (value, node), best first."""

    @abstractmethod
    def expanded(self, leaf: int, candidates: Candidates) -> list[int]:
        """A leaf was expanded: add what is worth it below; returns those nodes."""

    def put_back(self, leaf: int) -> None:
        """A leaf was not expanded after all."""
        return

    def committing(self, token: int) -> None:
        """The target's token after the root, before the tree moves on."""
        seen = self._seen.pop(self._tree.root, None)
        if seen is not None:
            taken = seen.tokens.index(token) if token in seen.tokens else None
            self._calibration.observe(seen.confidences, taken)

    def committed(self) -> None:
        """The tree was re-rooted."""
        self._seen = {node: seen for node, seen in self._seen.items() if node in self._tree}

    def _expandable(self, node: int) -> bool:
        return node not in self._seen and self._tree[node].token not in self._ends


class ChainExpansion(ExpansionPolicy):
    """One chain, ``lead`` tokens below the committed ones at most."""

    def __init__(self, tree: DraftTree, calibration: Calibration, ends: frozenset[int], lead: int) -> None:
        super().__init__(tree, calibration, ends)
        self.lead = lead

    def leaves(self, most: int) -> list[tuple[float, int]]:
        tree = self._tree
        last = tree[tree.root]
        for node in tree.chain():
            last = node
        if last.position - tree.position >= self.lead or not self._expandable(last.id):
            return []
        return [(tree.reach(last.id), last.id)]

    def expanded(self, leaf: int, candidates: Candidates) -> list[int]:
        self._seen[leaf] = candidates
        (chance,) = self._calibration.chances(candidates.confidences[:1])
        return [self._tree.add(leaf, candidates.tokens[0], chance)]


class TreeExpansion(ExpansionPolicy):
    """Best-first: always the leaves the target reaches with the best chance (SpecExec, SwiftSpec)."""

    width = RANKS

    def __init__(self, tree: DraftTree, calibration: Calibration, ends: frozenset[int]) -> None:
        super().__init__(tree, calibration, ends)
        self._heap: list[tuple[float, int]] = []
        self.committed()

    def leaves(self, most: int) -> list[tuple[float, int]]:
        found: list[tuple[float, int]] = []
        while self._heap and len(found) < most:
            surprisal, leaf = heappop(self._heap)
            if leaf not in self._tree or leaf in self._seen:  # gone, or expanded by the prompt's forward
                continue
            reach = self._tree.reach(leaf)
            if reach < REACH_FLOOR:
                heappush(self._heap, (surprisal, leaf))
                break
            found.append((reach, leaf))
        return found

    def put_back(self, leaf: int) -> None:
        if leaf in self._tree:
            heappush(self._heap, (self._tree[leaf].surprisal, leaf))

    def expanded(self, leaf: int, candidates: Candidates) -> list[int]:
        self._seen[leaf] = candidates
        least = REACH_FLOOR / self._tree.reach(leaf)
        new = []
        for token, chance in zip(candidates.tokens, self._calibration.chances(candidates.confidences), strict=True):
            if chance >= least:
                node = self._tree.add(leaf, token, chance)
                new.append(node)
                if self._expandable(node):
                    heappush(self._heap, (self._tree[node].surprisal, node))
        return new

    def committed(self) -> None:
        super().committed()
        tree = self._tree
        self._heap = [entry for entry in self._heap if entry[1] in tree]
        root = tree[tree.root]
        if self._expandable(root.id) and all(leaf != root.id for _, leaf in self._heap):
            self._heap.append((root.surprisal, root.id))
        heapify(self._heap)


class BranchExpansion(ExpansionPolicy):
    """Mirror-SD: a chain of gamma; once that window is on its way, chains of gamma where it may end.

    Branches start at the target's early exit when it hints, and at the drafter's own next candidates.
    """

    width = BRANCH_WIDTH

    def __init__(self, tree: DraftTree, calibration: Calibration, ends: frozenset[int], gamma: int) -> None:
        super().__init__(tree, calibration, ends)
        self._gamma = gamma
        self.hint_started: set[int] = set()  # branches that a hint started
        self._hints: dict[int, tuple[list[int], Calibration]] = {}  # what was expected below a node

    def leaves(self, most: int) -> list[tuple[float, int]]:
        tree = self._tree
        window = self.window()
        if len(window) <= self._gamma:
            return [(1.0, window[-1])] if self._expandable(window[-1]) else []
        starts = [child for node in window for child in tree[node].children.values() if child not in window]
        ends = [window[-1], *(end for start in starts if (end := self._end(start)) is not None)]
        return sorted(((tree.reach(end), end) for end in ends if self._expandable(end)), reverse=True)[:most]

    def expanded(self, leaf: int, candidates: Candidates) -> list[int]:
        self._seen[leaf] = candidates
        chances = self._calibration.chances(candidates.confidences)
        count = self.width if leaf in self.window() else 1
        found = list(zip(candidates.tokens, chances, strict=True))[:count]
        return [self._tree.add(leaf, token, chance) for token, chance in found]

    def hint(self, node: int, tokens: list[int], calibration: Calibration) -> None:
        """The target's early exit expects these next tokens below a node of its window, likeliest first."""
        self._hints[node] = tokens, calibration
        for token, chance in zip(tokens, calibration.chances([0.0] * len(tokens)), strict=True):
            if token not in self._tree[node].children:
                self.hint_started.add(self._tree.add(node, token, chance))

    def committing(self, token: int) -> None:
        super().committing(token)
        tokens, calibration = self._hints.pop(self._tree.root, ([], self._calibration))
        calibration.observe([0.0] * len(tokens), tokens.index(token) if token in tokens else None)

    def committed(self) -> None:
        super().committed()
        self._hints = {node: hint for node, hint in self._hints.items() if node in self._tree}
        self.hint_started = {node for node in self.hint_started if node in self._tree}

    def landing(self) -> str:
        """Where the last commit came down: on a branch that is "complete" (gamma long), "partial" or "missed"."""
        ready = len(self.window()) - 1
        return "complete" if ready >= self._gamma else "partial" if ready else "missed"

    def window(self) -> list[int]:
        """The root and the chain below it that the target checks next: first children, gamma at most."""
        found = [self._tree.root]
        while len(found) <= self._gamma and (children := self._tree[found[-1]].children):
            found.append(next(iter(children.values())))
        return found

    def _end(self, start: int) -> int | None:
        """The last node of a branch, None once gamma nodes follow its start."""
        end, length = start, 1
        while children := self._tree[end].children:
            end, length = next(iter(children.values())), length + 1
        return end if length <= self._gamma else None


def make_expansion(
    strategy: Strategy, tree: DraftTree, calibration: Calibration, ends: frozenset[int]
) -> ExpansionPolicy:
    """The expansion policy of a strategy."""
    match strategy.growth:
        case GrowthRule.TREE:
            return TreeExpansion(tree, calibration, ends)
        case GrowthRule.BRANCHES:
            return BranchExpansion(tree, calibration, ends, strategy.gamma)
        case GrowthRule.CHAIN:
            return ChainExpansion(tree, calibration, ends, 2 * strategy.gamma)
    return ChainExpansion(tree, calibration, ends, strategy.gamma)
