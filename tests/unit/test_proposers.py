"""Texts that are searched, how matches are trusted, and several proposers in one tree."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.workers.decoding.graft import graft
from hetero.workers.decoding.policy import tuning
from hetero.workers.decoding.proposers.indexed_text import IndexedText
from hetero.workers.decoding.proposers.lookup import Lookup, trust
from hetero.workers.decoding.proposers.past import Past
from hetero.workers.decoding.proposers.proposer import LOOKUP, PAST, name_of
from hetero.workers.decoding.tree import DraftTree
from hetero.workers.wire.messages import Draft

few = st.lists(st.integers(0, 3), max_size=60)


def lengths_of(tokens: list[int], context: list[int]) -> dict[int, int]:
    """By definition: of each next token the longest match of two tokens at least."""
    found: dict[int, int] = {}
    for place in range(2, len(tokens)):
        length = 0
        while length < min(place, len(context), tuning.MATCH) and tokens[place - 1 - length] == context[-1 - length]:
            length += 1
        if length >= 2:
            found[tokens[place]] = max(found.get(tokens[place], 0), length)
    return found


@settings(deadline=None)
@given(few, few)
def test_matches_are_those_by_definition(tokens, context):
    text = IndexedText(tokens)
    found = {text.following(place, 1)[0]: length for length, place in text.matches(context)}
    want = lengths_of(tokens, context)
    if len(tokens) <= tuning.MATCHES:  # all places are looked at
        assert found == want
    assert all(found[token] <= want[token] for token in found)
    assert bool(found) == bool(want)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=30), max_size=12), st.integers(8, 40))
def test_what_is_forgotten_is_not_found_and_texts_do_not_run_into_each_other(texts, room):
    text = IndexedText(room=room)
    for tokens in texts:
        text.part()
        text.extend(tokens)
        assert len(text) <= room
        for _, place in text.matches(tokens):
            following = text.following(place, 50)
            assert following and any(following == own[-len(following) :] for own in texts)
    assert len(text._latest) <= len(text) == len(text._earlier)


def test_what_stood_there_before_is_proposed_as_far_as_it_is_trusted():
    own = IndexedText([1, 2, 3, 4, 5, 6, 9, 1, 2, 3])
    lookup = Lookup(LOOKUP, own, own, trust())
    tree = DraftTree(9, 3)
    lookup.propose(tree, 100)
    chain = list(tree.chain())
    assert [node.token for node in chain] == [4, 5, 6, 9, 1, 2, 3][: len(chain)] and len(chain) >= 2
    assert all(node.source == LOOKUP and not node.drafted for node in chain)
    # The longer it agrees the surer it is.
    assert [node.chance for node in chain] == sorted(node.chance for node in chain)
    small = DraftTree(9, 3)
    lookup.propose(small, 2)
    assert len(small) == 2


def test_trust_is_learned_for_the_sequence_and_for_its_owner():
    hurt, sure = trust(), trust()
    text = IndexedText([1, 2, 9])
    wrong = Lookup(LOOKUP, text, text, hurt)
    for token in (token for n in range(60) for token in (1, 2, 10 + n)):  # after 1 2 never what came before
        wrong.propose(DraftTree(0, 0), 10)
        text.append(token)
        wrong.commit(token)
    text = IndexedText([1, 2, 3] * 3)
    right = Lookup(LOOKUP, text, text, sure)
    for n in range(100):
        right.propose(DraftTree(0, 0), 10)
        text.append(token := 1 + n % 3)
        right.commit(token)
    assert hurt.chance(0, 2) < 0.05 and wrong._trust.chance(0, 2) < 0.05
    assert sure.chance(0, 32) > 0.98 and right._trust.chance(0, 32) > 0.98
    for trusted, proposed in ((hurt, False), (sure, True)):
        tree, text = DraftTree(0, 2), IndexedText([1, 2, 3, 1, 2])
        Lookup(LOOKUP, text, text, trusted).propose(tree, 10)
        assert bool(len(tree)) is proposed


@settings(deadline=None)
@given(st.data())
def test_what_one_owner_gets_does_not_depend_on_anothers(data):
    """Random schedules of two: of one's proposals nothing changes with what the other is told."""
    steps = data.draw(st.lists(st.tuples(st.booleans(), few), min_size=1, max_size=12))
    other = data.draw(st.lists(few, min_size=len(steps), max_size=len(steps)))

    def mine(theirs: list[list[int]]) -> list[list[tuple[int, float]]]:
        past, found = Past(100_000), []
        for (me, tokens), instead in zip(steps, theirs, strict=True):
            if not me:
                follow(past, "them", instead)
                continue
            found.append(follow(past, "me", tokens))
        return found

    def follow(past: Past, owner: str, tokens: list[int]) -> list[tuple[int, float]]:
        own, found = IndexedText([1, 2]), []
        proposers = past.lookups(owner, own)
        for token in tokens:
            tree = DraftTree(0, own.tail(1)[0])
            for proposer in proposers:
                proposer.propose(tree, 50)
            found += [(node.token, node.chance) for node in tree.best(50)]
            own.append(token)
            for proposer in proposers:
                proposer.commit(token)
        past.learn(owner, tokens)
        return found

    assert mine([tokens for _, tokens in steps]) == mine(other)


def test_an_owner_finds_only_what_it_was_told():
    past = Past(100)
    past.learn("a", list(range(20)))
    for owner, want in (("a", [3, 4, 5]), ("b", [])):
        tree = DraftTree(1, 2)
        for proposer in past.lookups(owner, IndexedText([1, 2])):
            proposer.propose(tree, 3)
        assert [node.token for node in tree.chain()] == want[: len(tree)] and bool(want) == bool(len(tree))
    for _ in range(30):
        past.learn("busy", list(range(40)))
        assert len(past) <= 100
    tree = DraftTree(1, 2)
    for proposer in past.lookups("a", IndexedText([1, 2])):
        proposer.propose(tree, 3)
    assert len(tree)  # a busy owner costs a quiet one nothing
    past.learn("long", list(range(1000)))
    assert len(past) <= 100
    assert [name_of(source) for source in (LOOKUP, PAST, 0, 7)] == ["lookup", "past", "drafter", "drafter-7"]


def test_one_token_of_two_proposers_is_one_node_as_likely_as_the_surer_says():
    tree = DraftTree(0, 0)
    first = tree.add(0, 5, 0.4, LOOKUP)
    below = tree.add(first, 6, 0.5, LOOKUP)
    fresh = graft(tree, Draft(1, 1, 1, [-1, 0], [5, 7], [0.8, 0.9], 0.01), [], 100, 50, source=0)
    assert fresh == 2 and len(tree) == 3  # new to drafters, though one was there
    assert tree[first].source == LOOKUP and tree[first].drafted and not tree[below].drafted
    assert abs(tree.reach(first) - 0.8) < 1e-9 and abs(tree.reach(below) - 0.8 / 11) < 1e-9  # 7 is far likelier
    assert [node.token for node in tree.chain()] == [5, 7]
    tree.add(first, 6, 0.99, LOOKUP)
    assert [node.token for node in tree.chain()] == [5, 6]
    assert [node.token for node in tree.chain(drafted=True)] == [5, 7]
    again = graft(tree, Draft(1, 1, 1, [-1, 0], [5, 7], [0.8, 0.9], 0.01), [], 100, 50, source=0)
    assert again == 0
    assert tree.advance(5) == first and abs(tree.reach(below) - 99 / 109) < 1e-9
