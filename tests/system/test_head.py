"""A head in a process of its own, told the states of the target over ZeroMQ. With random weights it is seldom right."""

from __future__ import annotations

import json
import time

import pytest
from helpers.builtin_pair import TARGET
from helpers.next_token_gguf import qwen35
from helpers.random_heads import save_head
from helpers.running_server import RunningServer
from helpers.streams import streams

from hetero.cluster.inventory import take_inventory
from hetero.config import make_config
from hetero.errors import HeteroError
from hetero.planning.planner import make_plan

SEEDS = [21, 22]
SETTINGS = {"target": str(TARGET), "lookup": False, "port": 0, "context": 600, "parallel": 2}


def drafted(stack: RunningServer) -> int:
    return sum(peer.drafted for peer in stack.status("target").drafters)


@pytest.mark.long
@pytest.mark.parametrize("engine", ["octet", "torch", "llama_cpp"])
def test_it_drafts_and_the_texts_are_the_targets(tmp_path, engine):
    head = save_head(tmp_path / "head", TARGET, "sglang")
    if engine == "llama_cpp":  # which has no name for what leaves the last layer
        config = json.loads((head / "config.json").read_text())
        config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}
        (head / "config.json").write_text(json.dumps(config))
    drafts_and_keeps_the_texts({"draft": str(head), "target_engine": engine, **SETTINGS}, (engine, "head"))


def test_a_models_own_next_token_layers_draft(tmp_path):
    target, _ = qwen35(tmp_path / "qwen.gguf")
    told = {**SETTINGS, "target": str(target), "draft": "mtp", "context": 400}
    drafts_and_keeps_the_texts(told, ("llama_cpp", "next_token"))


def drafts_and_keeps_the_texts(settings, engines):
    stack = RunningServer(strategy="serial", gamma=2, **settings)
    try:
        assert tuple(role.spec.engine for role in (stack.plan.target, stack.plan.drafter)) == engines
        texts = [text for text, _ in streams(stack, 150, SEEDS, speculation=False)]
        end = time.monotonic() + 90
        while drafted(stack) <= 50:  # it begins once it was told the states of the prompt, and the toy does not wait
            assert time.monotonic() < end, stack.status("target").drafters
            assert [text for text, _ in streams(stack, 150, SEEDS)] == texts
        found = streams(stack, 150, SEEDS, meanwhile=lambda: stack.kill("drafter"))
        assert [text for text, _ in found] == texts
        end = time.monotonic() + 90
        while drafted(stack) < 20:  # another incarnation's own
            assert time.monotonic() < end, stack.events
            streams(stack, 40, SEEDS)
        stack.settled()
    finally:
        stack.close()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"target_engine": "llama_cpp"}, "does not hand out the hidden states .* take torch or octet"),
        ({"draft_engine": "octet"}, "octet runs"),
        ({"draft_engine": "torch"}, "leave out --draft-engine"),
        ({"target_ranks": 2}, "without ranks"),
    ],
)
def test_what_cannot_go_together_is_one_line(tmp_path, more, says):
    head = save_head(tmp_path / "head", TARGET, "dovetail")
    with pytest.raises(HeteroError, match=says) as error:
        make_plan(make_config({**SETTINGS, "draft": str(head), **more}), take_inventory())
    assert "\n" not in str(error.value)


def test_a_head_is_no_target(tmp_path):
    head = save_head(tmp_path / "head", TARGET, "dovetail")
    with pytest.raises(HeteroError, match="name it as the --draft"):
        make_plan(make_config({**SETTINGS, "target": str(head)}), take_inventory())
