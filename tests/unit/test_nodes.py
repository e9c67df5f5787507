"""Which machine takes which role, as machines come and go."""

from __future__ import annotations

import pytest

from hetero.config import make_config
from hetero.errors import ConfigError, DeviceError
from hetero.placement.device import Inventory
from hetero.placement.nodes import BUILD, DRAFTER, TARGET, Node, drafter_node, returned, target_node
from hetero.planning.planner import Planner
from hetero.serve import remarks

HERE = Inventory((0, 1, 2, 3), 64 << 30)


def node(name: str, *marks: str, cpus: int = 4, gpus: int = 0, here: bool = False, id: str = "") -> Node:
    return Node(id or f"id-{name}", f"10.0.0.{len(name)}", frozenset({name}), frozenset(marks), cpus, gpus, 0, here)


BIG = node("big", TARGET, here=True)
GPU = node("gpupc", DRAFTER)


def test_roles_by_mark_then_by_what_there_is():
    weak, strong, gpu = node("weak", cpus=2), node("strong", cpus=32), node("withgpu", cpus=8, gpus=1)
    assert target_node([weak, strong, gpu]) == strong
    assert target_node([weak, strong, node("a", TARGET, cpus=1)]).name == "a"
    assert target_node([node("b", DRAFTER, cpus=64), weak]) == weak
    assert drafter_node([weak, strong, gpu], strong) == gpu
    assert drafter_node([weak, strong], strong) == weak
    assert drafter_node([BIG, weak, GPU], BIG) == GPU
    assert drafter_node([weak], weak) == weak  # alone: both roles, until another comes
    assert drafter_node([BIG], BIG) is None  # marked: it waits for the other


def test_a_machine_returns_under_another_id():
    again = node("gpupc", DRAFTER, id="new")
    assert returned([BIG, GPU], GPU, DRAFTER) == GPU
    assert returned([BIG, again], GPU, DRAFTER) == again
    assert returned([BIG, node("spare", DRAFTER)], GPU, DRAFTER).name == "spare"  # the mark is what was asked for
    assert returned([BIG], GPU, DRAFTER) is None
    plain = node("plain")
    assert returned([BIG, node("plain", id="new")], plain, DRAFTER).id == "new"
    assert returned([BIG, node("other")], plain, DRAFTER) is None


def planner(**fields: object) -> Planner:
    return Planner(make_config(fields), HERE)


def test_a_drafter_waits_for_its_machine_and_takes_it_when_it_comes():
    chosen = planner()
    plan = chosen.plan([BIG])
    assert plan.drafter is None and plan.awaited == "another machine"
    assert "NO DRAFTER" in remarks(plan)[0]
    assert plan.target.spec.secure and plan.target.spec.host == BIG.address  # it will be dialled from elsewhere
    assert str(plan.target.device) == "cpu:0-3"
    assert chosen.drafter_again(None, plan.target, [BIG]) is None
    placed = chosen.drafter_again(None, plan.target, [BIG, GPU])
    assert placed.node == GPU and placed.spec.secure
    # It leaves, and returns under another id.
    assert chosen.drafter_again(placed, plan.target, [BIG]) is None
    again = chosen.drafter_again(placed, plan.target, [BIG, node("gpupc", DRAFTER, id="new")])
    assert again.node.id == "new" and again.spec == placed.spec
    # Where it is well it stays, whoever else comes.
    assert chosen.drafter_again(placed, plan.target, [BIG, GPU, node("larger", gpus=8)]) is placed


def test_a_named_machine_is_waited_for_a_missing_target_is_refused():
    chosen = planner(draft_device="attic/cpu")
    plan = chosen.plan([BIG, GPU])
    assert plan.drafter is None and plan.awaited == "a machine called attic"
    assert chosen.drafter_again(None, plan.target, [BIG, GPU]) is None
    assert chosen.drafter_again(None, plan.target, [BIG, node("attic")]).node.name == "attic"
    with pytest.raises(DeviceError, match="node 'attic' is not in the cluster"):
        planner(target_device="attic/cpu").plan([BIG, GPU])


def test_alone_and_unmarked_both_roles_are_here_until_another_comes():
    alone, other = node("alone", here=True), node("other")
    chosen = planner()
    plan = chosen.plan([alone])
    assert plan.target.node == plan.drafter.node == alone
    assert "BOTH ROLES ON alone" in remarks(plan)[0]
    assert chosen.drafter_again(plan.drafter, plan.target, [alone]) is plan.drafter
    moved = chosen.drafter_again(plan.drafter, plan.target, [alone, other])
    assert moved.node == other
    assert chosen.drafter_again(moved, plan.target, [alone]) is plan.drafter  # and back, when it leaves
    third = node("third", cpus=2)
    assert chosen.drafter_again(moved, plan.target, [alone, third]).node == third


def test_a_target_goes_nowhere_but_back_to_its_machine():
    far = node("far", TARGET, cpus=64)
    home = node("home", here=True)
    chosen = planner()
    plan = chosen.plan([home, far])
    assert plan.target.node == far
    assert chosen.target_again(plan.target, [home]) is None
    back = chosen.target_again(plan.target, [home, node("far", TARGET, cpus=64, id="new")])
    assert back.node.id == "new" and back.spec.host == far.address


def test_both_named_here_stay_on_the_loopback():
    plan = planner(target_device="cpu:0", draft_device="cpu:1").plan([BIG, GPU])
    assert plan.target.spec.secure and plan.target.spec.host == "127.0.0.1" and not remarks(plan)


def test_a_machine_says_which_hetero_it_has():
    assert node("x", BUILD + "0.1.0-abc-py3.11").build == "0.1.0-abc-py3.11"
    assert node("x").build == ""


def test_clusters_that_contradict_themselves_are_refused():
    from click.testing import CliRunner

    from hetero.cli import main

    for flags, words in (
        (["--cluster", "--address", "auto"], "cluster: it starts one"),
        (["--require-nodes", "2"], "require_nodes: 2 machines need a cluster"),
        (["--address", "nonsense"], "is not HOST:PORT"),
        (["--address", "127.0.0.1:1"], "does not answer"),
    ):
        done = CliRunner().invoke(main, ["serve", "--port", "0", *flags])
        assert done.exit_code == 1 and words in done.output and done.output.count("\n") == 1, done.output
    with pytest.raises(ConfigError, match="require_nodes"):
        make_config({"require_nodes": 0})
