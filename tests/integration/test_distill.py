"""`hetero distill` on the toy target: the drafter learns, from its teacher and nothing else, and is gone on with."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner

from hetero.cli import main
from hetero.data import HELD_OUT, PAIR
from hetero.distill import examination, training
from hetero.distill.answers import Author
from hetero.distill.corpus import Text
from hetero.distill.examination import Examination
from hetero.distill.lessons import Lessons, lesson
from hetero.distill.prompts import chat_of, own_prompts
from hetero.distill.students.head import Head, Observed, head_states
from hetero.distill.students.layers import Layers, make_student, write_student
from hetero.distill.training import Course, train
from hetero.workers.engines.base import Row
from hetero.workers.engines.octet.engine import OctetEngine, OctetSettings
from hetero.workers.engines.registry import EngineSettings, find_engine
from hetero.workers.engines.torch.divergence import DIVERGENCES
from hetero.workers.models.tokenizer import GgufTokenizer
from hetero.workers.models.translation import translation

TARGET = PAIR / "target.gguf"
TOKENIZER = GgufTokenizer(TARGET)


@pytest.fixture(autouse=True)
def no_rank(monkeypatch):
    """A team's ranks say so in their environment, also where a test was one of them; accelerate reads that."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def written() -> tuple[list[Text], list[examination.Answer]]:
    """What the target writes, and its answers to prompts kept apart."""
    torch.set_num_threads(1)
    engine = find_engine("octet").load(EngineSettings(TARGET, 1, sequences=32, context=512, draft_nodes=8))
    ends = TOKENIZER.vocabulary.ends
    texts: list[Text] = []
    author = Author(engine, ends, 1)
    for text in author.write(own_prompts(chat_of(TOKENIZER), TOKENIZER), lambda: len(texts) >= 96):
        texts.append(text)
    prompts = [TOKENIZER.encode(HELD_OUT.read_text()[at : at + 300]) for at in range(0, 40_000, 4_000)]
    held = examination.answers(engine, ends, prompts, 48)
    engine.shutdown()
    return texts, held


def of_layers(taken) -> Layers:
    return Layers(TARGET, list(taken), range(4096), 0, "q8_0")


@pytest.mark.long
def test_the_answers_are_what_the_target_says(written):
    """Its own samples by the one rule: a plain loop over another engine's logits says them again."""
    _, held = written
    assert {answer.temperature for answer in held} == {0.0, 0.8}
    itself, few = (Examination(held, of_layers(some), 512).marks().agreement for some in (range(10), [0, 9]))
    assert all(itself[t] > 0.97 and few[t] < 0.6 for t in itself), (itself, few)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_the_file_says_what_the_student_says(tmp_path, kind):
    student = make_student(TARGET, [0, 4, 9], None)
    file = tmp_path / "drafter.gguf"
    write_student(student, TARGET, list(range(4096)), kind, file)
    tokens = TOKENIZER.encode(HELD_OUT.read_text()[5000:6000])[:100]
    with torch.no_grad():
        own = student.eval()(torch.tensor([tokens])).logits[0].numpy()
    for name in ("octet", "llama_cpp"):
        engine = find_engine(name).load(EngineSettings(file, 1, sequences=1, context=256))
        engine.prefill(1, tokens[:1])
        rows = [Row(1, n, n - 1, token) for n, token in enumerate(tokens) if n][:60]
        outcome = engine.extend(rows)
        theirs = np.stack([outcome.logits(n).copy() for n in range(60)])
        engine.shutdown()
        same = (theirs.argmax(-1) == own[1:61].argmax(-1)).mean()
        assert same > 0.9, name  # (queries and keys in another order would agree at chance)


STEPS = 60


@pytest.fixture
def clock(monkeypatch):
    """A clock of steps: it is asked about three times for each, whatever the machine."""
    ticks = itertools.count()
    monkeypatch.setattr(training, "monotonic", lambda: next(ticks) / 3.0)


def taught(student, texts, held, folder):
    """Agreement before and after so many steps: too few for a good drafter, not for what shows."""
    exam = Examination(held, student, 512)
    before = exam.marks()
    lessons = [lesson(text, student.words, 128) for text in texts]
    if student.source is not None:
        lessons = [replace(one, states=student.source.states(one.tokens)) for one in lessons]
    course = Course(STEPS / 60, 0.0, 1e6, 8, 1e-3, DIVERGENCES["mixed"], 1)
    found = []
    train(student, Lessons(lessons), course, folder, exam.marks, lambda now, marks: found.append(marks), lambda: False)
    return before, found[-1]


def test_what_it_writes_comes_with_its_states():
    """Thirty-two texts at once, behind prefixes kept and taken again: those it has of each text alone."""
    engine = OctetEngine(TARGET, OctetSettings(1, 33, 256, draft_nodes=8, features=head_states("eagle", 10)))
    prompts = [replace(one, most=20) for one in itertools.islice(own_prompts(chat_of(TOKENIZER), TOKENIZER), 40)]
    texts = list(Author(engine, TOKENIZER.vocabulary.ends, 1).write(iter(prompts), lambda: False))
    assert len(texts) == 40
    source = Observed(engine)
    for text in texts[::5]:
        assert text.states.shape == (len(text.tokens), source.width)
        assert np.array_equal(text.states, source.states(text.tokens))
    engine.shutdown()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["eagle", pytest.param("dgf", marks=pytest.mark.rare)])
def test_a_head_learns(kind, written, clock, tmp_path):
    texts, held = written
    engine = OctetEngine(TARGET, OctetSettings(1, 1, 512, features=head_states(kind, 10)))
    student = Head(kind, TARGET, 1, range(4096), Observed(engine))
    before, after = taught(student, texts, held, tmp_path / "right")
    engine.shutdown()
    assert all(after.agreement[t] >= before.agreement[t] + 0.08 for t in before.agreement), (before, after)
    assert len(after.later) == 2 and after.mean > before.mean + 0.03


@pytest.mark.long
def test_it_learns_and_a_shuffled_teacher_teaches_nothing(written, clock, tmp_path):
    texts, held = written
    before, after = (marks.agreement for marks in taught(of_layers([0, 9]), texts, held, tmp_path / "right"))
    assert all(after[t] >= before[t] + 0.1 for t in before), (before, after)
    rng = np.random.default_rng(0)
    ids = rng.permutation(np.concatenate([text.ids for text in texts]))
    shares = rng.permutation(np.concatenate([text.logprobs for text in texts]))
    shuffled, at = [], 0
    for text in texts:
        rows = slice(at, at + len(text.ids))
        shuffled.append(Text(text.tokens, text.first, ids[rows], shares[rows]))
        at += len(text.ids)
    _, marks = taught(of_layers([0, 9]), shuffled, held, tmp_path / "wrong")
    wrong = marks.agreement
    assert all(wrong[t] <= after[t] - 0.1 for t in wrong), (wrong, after)


COMMAND = ["distill", "--target", "builtin:toy", "--layers", "1", "--threads", "1", "--engine", "octet", "--no-foresee"]


@pytest.mark.long
def test_killed_it_goes_on(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-P", "-m", "hetero.cli", *COMMAND, "--minutes", "0.8", "--vocabulary", "2000", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    progress = out / "work" / "progress.json"
    end = time.monotonic() + 240
    try:
        while time.monotonic() < end and process.poll() is None:
            if list(out.glob("work/checkpoints/*/trainer_state.json")):
                break
            time.sleep(0.2)
        assert process.poll() is None and progress.is_file()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = json.loads(progress.read_text())
    written = {file.name: file.stat().st_mtime_ns for file in (out / "work" / "corpus").iterdir()}
    checkpoint = out / "work" / "checkpoints" / "checkpoint-999999"  # one that was being written
    checkpoint.mkdir(parents=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=280)
    after = json.loads(progress.read_text())
    assert after["history"][: len(before["history"])] == before["history"]
    assert after["wrote"] == before["wrote"] and after["learned"] >= 0.65 * 0.8 > before["learned"]
    assert written == {file.name: file.stat().st_mtime_ns for file in (out / "work" / "corpus").iterdir()}
    assert not checkpoint.exists()
    first, then = (after["history"][len(before["history"]) + n][1]["0.8"] for n in (-1, 0))
    assert then > first - 0.05  # it did not begin anew
    card = (out / "README.md").read_text()
    assert "license: unknown" in card and "tokens it can propose: 2," in card
    assert (out / "drafter.gguf").stat().st_size < 1_500_000


def said(*words: str) -> str:
    found = CliRunner().invoke(main, [*COMMAND, *words])
    assert found.exit_code != 0
    return " ".join(found.output.split())


def test_what_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    assert "layers: 10 is no number from 1 to 9: the target has 10" in said("--layers", "10", out)
    assert "loss: 'l2' is unknown: choose mixed, kl, reverse, js, tv" in said("--loss", "l2", out)
    assert "no such file or directory" in said("--target", "nowhere.gguf", out)
    assert "nowhere: No such file or directory" in said("--data", str(tmp_path / "nowhere"), out)
    assert "vocabulary: 20 tokens are too few: 1024 at least" in said("--vocabulary", "20", out)
    assert "exit: 10 is no number from 1 to 9: 1 of 10 layers follow" in said("--exit", "10", out)
    (tmp_path / "a-file").write_text("")
    assert "is a file" in said(str(tmp_path / "a-file"))
    with monkeypatch.context() as patch:
        patch.setattr("hetero.distill.recipe.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 20}))
        assert "out: " in (line := said(str(tmp_path / "full"))) and "its disk has 1 left" in line
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1 << 20}))
        assert "takes about 0.2 GiB of memory, 0.0 are free" in said(out)
    with monkeypatch.context() as patch:
        patch.setattr("hetero.distill.teaching._LEAST", 1 << 40)
        assert "minutes: 0.1 are too few: the target wrote" in said("--minutes", "0.1", str(tmp_path / "short"))


def test_a_drafter_cut_down_says_the_same_of_what_it_kept(tmp_path):
    out = tmp_path / "small.gguf"
    words = ["trim", "builtin:toy", str(out), "--vocabulary", "1500", "--minutes", "0.05", "--threads", "1"]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 0, found.output
    assert "of what it writes" in found.output and "a token takes" in found.output
    whole, small = GgufTokenizer(PAIR / "drafter.gguf").vocabulary, GgufTokenizer(out).vocabulary
    between = translation(whole, small)
    kept = np.flatnonzero(between.same >= 0)
    assert 300 < len(kept) == len(small) <= 1516  # how many it used depends on the machine
    text = kept[np.random.default_rng(1).integers(0, len(kept), 40)]
    logits = []
    for file, tokens in ((PAIR / "drafter.gguf", text), (out, between.same[text])):
        engine = OctetEngine(file, OctetSettings(1, 1, 128))
        logits.append(engine.prefill(1, tokens.tolist()).logits(0).copy())
        engine.shutdown()
    assert np.array_equal(logits[0][kept], logits[1][between.same[kept]])
    assert "out: " in CliRunner().invoke(main, words).output  # it is there already
