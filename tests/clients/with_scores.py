"""lm-eval's scores by the server's local-completions and by transformers, on one checkpoint (HETERO_REFERENCE)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "lm_eval_task"


def scored(tmp_path, name, arguments, *more):
    """Accuracy, and the logprobs of each question's choices."""
    out = tmp_path / name
    (tmp_path / "toy_choice.yaml").write_text(
        (HERE / "toy_choice.yaml").read_text().replace("${QUESTIONS}", str(HERE / "questions.jsonl"))
    )
    done = subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "run", "--model", name, "--tasks", "toy_choice", "--include_path",
            tmp_path, "--model_args", ",".join(f"{key}={value}" for key, value in arguments.items()), "--output_path",
            out, "--log_samples", "--batch_size", "1", *more,
        ],
        env={**os.environ, "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
             "HF_HOME": str(tmp_path / "hf"), "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (results,), (samples,) = out.rglob("results*.json"), out.rglob("samples*.jsonl")
    lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    logprobs = [[float(choice[0]) for choice in line["filtered_resps"]] for line in lines]
    return json.loads(results.read_text())["results"]["toy_choice"]["acc,none"], logprobs


def test_scores(url, model, tmp_path):
    there = os.environ["HETERO_REFERENCE"]
    both = {"add_bos_token": True}  # by itself lm-eval adds it for the one and not for the other
    api = {"model": model, "base_url": f"{url}/v1/completions", "tokenizer_backend": "huggingface", "tokenizer": there}
    ours = scored(tmp_path, "local-completions", {**api, **both})
    theirs = scored(tmp_path, "hf", {"pretrained": there, "dtype": "float32", **both}, "--device", "cpu")
    assert ours[0] == theirs[0] and len(ours[1]) == len(theirs[1]) > 4
    worst = 0.0
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert mine == pytest.approx(other, abs=1e-3)
        worst = max(worst, *(abs(a - b) for a, b in zip(mine, other, strict=True)))
    print(f"largest difference of {sum(map(len, ours[1]))} logprobs: {worst:.1e}")
