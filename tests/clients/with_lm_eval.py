"""lm-eval's API models on tasks of eight local questions; nothing is downloaded.

Multiple choice needs the logprobs of the prompt (echo, logprobs=1, max_tokens=1) and a tokenizer that counts as the
server does: a local HF directory (HETERO_TOKENIZER), or the server's own /tokenizer_info, /tokenize and /detokenize.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "lm_eval_task"


@pytest.fixture(scope="module")
def evaluate(url, key, model, tmp_path_factory):
    tasks = tmp_path_factory.mktemp("tasks")
    for each in HERE.glob("*.yaml"):
        (tasks / each.name).write_text(each.read_text().replace("${QUESTIONS}", str(HERE / "questions.jsonl")))

    def run(kind, task, route, *more, **fields):
        out = tmp_path_factory.mktemp("out")
        told = {"model": model, "base_url": f"{url}/v1/{route}", "max_retries": 1, "timeout": 60, **fields}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "lm_eval",
                "run",
                "--model",
                kind,
                "--tasks",
                task,
                "--include_path",
                tasks,
                "--model_args",
                ",".join(f"{k}={v}" for k, v in told.items()),
                "--output_path",
                out,
                *more,
            ],
            env={
                **os.environ,
                "OPENAI_API_KEY": key,
                "HF_HUB_OFFLINE": "1",
                "HF_DATASETS_OFFLINE": "1",
                "HF_HOME": str(tasks / "hf"),
                "TOKENIZERS_PARALLELISM": "false",
                "LMEVAL_LOG_LEVEL": "WARNING",
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (found,) = out.rglob("results*.json")
        return json.loads(found.read_text())["results"][task]

    yield run
    shutil.rmtree(tasks, ignore_errors=True)


def test_choices_by_a_local_tokenizer(evaluate):
    tokenizer = os.environ.get("HETERO_TOKENIZER")
    if not tokenizer:
        pytest.skip("HETERO_TOKENIZER: a Hugging Face tokenizer directory of the served model")
    for tokenized in (True, False):  # prompts as lists of ids (of texts); batch_size 2 sends two prompts a request
        found = evaluate(
            "local-completions",
            "toy_choice",
            "completions",
            "--batch_size",
            "2",
            tokenizer_backend="huggingface",
            tokenizer=tokenizer,
            tokenized_requests=tokenized,
        )
        assert 0 <= found["acc,none"] <= 1


def test_choices_by_the_servers_tokenizer(evaluate):
    found = evaluate("local-completions", "toy_choice", "completions", tokenizer_backend="remote")
    assert 0 <= found["acc,none"] <= 1


def test_generation(evaluate):
    found = evaluate("local-completions", "toy_generate", "completions", tokenizer_backend="none", eos_string="</s>")
    assert 0 <= found["exact_match,none"] <= 1


def test_generation_by_chat(evaluate):
    found = evaluate(
        "local-chat-completions",
        "toy_generate",
        "chat/completions",
        "--apply_chat_template",
        eos_string="</s>",
        num_concurrent=2,
    )
    assert 0 <= found["exact_match,none"] <= 1
