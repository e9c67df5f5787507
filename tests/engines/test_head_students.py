"""A head as it learns, many places and several steps of a draft at once, is the head that is served, one at a time."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from helpers.builtin_pair import TARGET

from hetero.distill.lessons import given
from hetero.distill.students.head import Head, Observed, head_states
from hetero.workers.engines.base import Row
from hetero.workers.engines.octet.engine import OctetEngine, OctetSettings
from hetero.workers.engines.torch.engine import TorchSettings
from hetero.workers.engines.torch.head_engine import HeadEngine
from hetero.workers.models.head import is_head, read_head
from hetero.workers.models.metadata import read_metadata

LAYERS = read_metadata(TARGET).layers


@pytest.mark.parametrize(("kind", "layers", "kept"), [("eagle", 1, 1500), ("eagle", 2, 4096), ("dgf", 2, 1500)])
def test_every_step_of_a_lesson_is_a_draft(kind, layers, kept, tmp_path):
    engine = OctetEngine(TARGET, OctetSettings(1, 1, 256, features=head_states(kind, LAYERS)))
    source = Observed(engine)
    student = Head(kind, TARGET, layers, range(kept), source)
    torch.manual_seed(4)
    with torch.no_grad():
        for weight in student.model.parameters():
            weight.add_(0.1 * torch.randn_like(weight)).copy_(weight.half().float())
    rng = random.Random(3)
    texts = [np.array([rng.randrange(4000) for _ in range(count)]) for count in (24, 17)]
    states = [source.states(text) for text in texts]
    engine.shutdown()
    with torch.no_grad():
        steps = student.model.eval() and student.say(student.model, given(texts, states)).numpy()
    steps = steps.reshape(3, 2, 24, -1)
    folder = student.write(tmp_path)
    assert is_head(folder) and read_head(folder).states(LAYERS) == head_states(kind, LAYERS)
    head = HeadEngine(folder, TARGET, TorchSettings(sequences=1, context=128))
    for n, (text, told) in enumerate(zip(texts, states, strict=True)):
        for known in (1, 6, len(text) - 3):  # features of so many tokens have come
            head.inform(1, 0, told[:known])
            tokens = text.tolist()
            outcome = [head.prefill(1, tokens[1 : known + 1])]
            for deep, token in enumerate(tokens[known + 1 : known + 3], 1):
                outcome.append(head.extend([Row(1, deep, deep - 1, token)]))
            for step, found in enumerate(outcome):
                own = found.logits(0)
                assert np.allclose(own[:kept], steps[step, n, known + step], rtol=2e-3, atol=2e-3), (step, known)
                assert np.isneginf(own[kept:]).all()
            head.close(1)
    head.shutdown()
