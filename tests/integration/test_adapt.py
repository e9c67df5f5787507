"""A drafter that learns while it serves ("Online Speculative Decoding", Liu et al. 2024): real workers and sockets."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from helpers.builtin_pair import DRAFTER, TARGET
from helpers.real_workers import Client, opening, until, workers

from hetero.data import HELD_OUT
from hetero.errors import ConfigError
from hetero.workers.engines.base import Learner, Lesson, Row
from hetero.workers.engines.torch.engine import TorchEngine, TorchSettings
from hetero.workers.errors import EngineError, Unsupported
from hetero.workers.models.inflate import inflate
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.runtime.spec import WorkerSpec

STREAMS, TOKENS = 9, 100


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A drafter to which the target's texts are strange: half of what it knew is noise."""
    file = tmp_path_factory.mktemp("stranger") / "drafter.gguf"
    inflate(DRAFTER, file, None, "f32", noise=0.5)
    return file


def served(drafter, learns):
    """Tokens of streams one after another, and of each the share of the drafter's tokens that were right."""
    tokenizer, text = GgufTokenizer(TARGET), HELD_OUT.read_text()
    common = {"strategy": "serial", "gamma": 1, "context": 512, "lookup": False}
    own = WorkerSpec("drafter", str(drafter), "torch", cores=[0], learns=learns, **common)
    said, right = [], []
    with workers(WorkerSpec("target", str(TARGET), "octet", cores=[0], **common), own) as (verifier, student):
        with Client(verifier.status().endpoint) as client:
            until(lambda: verifier.status().drafters)
            for n in range(STREAMS):
                prompt = tokenizer.encode(text[n * 3000 : n * 3000 + 300])
                asked = opening(n + 1, prompt, TOKENS, 0.8 if n % 2 else 0.0, seed=n)
                tokens, _, end = client.ask(asked)[n + 1]
                said.append(tokens)
                right.append(end.stats.draft_n_accepted / max(1, end.stats.draft_n))
                quiet(student)
            status = student.status()
        agreed = verifier.status().speeds
    return said, right, status, agreed


def quiet(student) -> None:
    """Wait until it has learned what there is to learn."""
    seen = -1
    while seen != (steps := student.status().studied):
        seen = steps
        time.sleep(0.5 if student.spec.learns else 0.0)


@pytest.mark.long
def test_it_recovers_and_no_text_changes(stranger):
    texts, right, status, agreed = served(stranger, True)
    others, fixed, unlearned, _ = served(stranger, False)
    assert texts == others
    assert status.lessons >= 5 and status.studied >= 5
    assert unlearned.lessons == unlearned.studied == 0
    last, before = (sum(found[-3:]) / 3 for found in (right, fixed))
    assert last > before + 0.1, (right, fixed)
    assert agreed.alpha > agreed.alpha_first + 0.02


def test_a_model_learns_what_it_is_told_and_keeps_its_embeddings():
    """In 32 and in 16 bits; what follows is decoded with what it learned."""
    lessons = [Lesson(list(range(50, 90)), [9, 19, 29, 39], [[7, 8]] * 4, [[-0.05, -4.0]] * 4)]
    for dtype in ("float32", "bfloat16"):
        engine = TorchEngine(DRAFTER, TorchSettings(sequences=1, context=128, dtype=dtype, learns=True))
        assert engine.limits.learns and isinstance(engine, Learner)
        embedding = engine._model.get_input_embeddings().weight.clone()
        engine.prefill(1, list(range(50, 60)))
        before = [engine.extend([Row(1, 1, 0, 60)]).logits(0).copy()]
        chances = []
        for _ in range(12):
            engine.study(lessons)
            engine.close(1)
            logits = torch.from_numpy(engine.prefill(1, list(range(50, 60))).logits(0).copy())
            chances.append(float(logits.softmax(-1)[7]))
        assert chances[-1] > max(0.3, 3 * chances[0]), chances
        assert not (engine.extend([Row(1, 1, 0, 60)]).logits(0) == before[0]).all()
        assert torch.equal(engine._model.get_input_embeddings().weight, embedding)
        known = {name: weight.clone() for name, weight in engine._model.state_dict().items()}
        with pytest.raises(EngineError, match="no finite number"):
            engine.study([replace(lessons[0], logprobs=[[float("nan"), -4.0]] * 4)])
        with pytest.raises(EngineError, match="could not learn"):
            engine.study([replace(lessons[0], tokens=[5000] * 40)])
        assert all(torch.equal(known[name], weight) for name, weight in engine._model.state_dict().items())
        assert all(weight.grad is None for weight in engine._model.parameters())
        engine.shutdown()
    with pytest.raises(Unsupported, match="one rank learns"):
        TorchEngine(DRAFTER, TorchSettings(group=2, learns=True))


def test_what_cannot_learn_is_a_line(tmp_path):
    from helpers.random_heads import save_head

    from hetero.cluster.inventory import take_inventory
    from hetero.config import make_config
    from hetero.planning.planner import Planner

    def said(**values) -> str:
        config = make_config({"target": "builtin:toy", "adapt": True, **values})
        with pytest.raises(ConfigError) as found:
            Planner(config, take_inventory()).plan()
        return str(found.value)

    assert "adapt: drafters learn while they serve, which --draft names" in said(draft="none")
    assert "adapt: octet runs models as they are: take --draft-engine torch" in said(draft_engine="octet")
    assert "adapt: a drafter learns on one device" in said(draft_ranks=2)
    head = str(save_head(tmp_path / "head", TARGET, "sglang"))
    assert "is a head, and does not learn while it serves" in said(draft=head)
    plan = Planner(make_config({"target": "builtin:toy", "adapt": True}), take_inventory()).plan()
    assert plan.drafter.spec.learns and plan.drafter.spec.engine == "torch" and not plan.target.spec.learns
    plain = Planner(make_config({"target": "builtin:toy", "draft_engine": "torch"}), take_inventory()).plan()
    assert plan.drafter.memory.total > plain.drafter.memory.total and not plain.drafter.spec.learns
