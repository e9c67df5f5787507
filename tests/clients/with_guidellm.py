"""guidellm's shortest benchmark, on given prompts (no tokenizer) and, with HETERO_TOKENIZER, on synthetic ones."""

import json
import os
import subprocess
import sys

import pytest

PROMPTS = ["import os", "def f(x):", "x = 1", "for i in"]


@pytest.fixture
def benchmark(url, key, model, tmp_path):
    def run(data, *more, **backend):
        out = tmp_path / "report.json"
        told = {"kind": "openai_http", "target": url, "model": model, "api_key": key, **backend}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "guidellm",
                "run",
                "--backend",
                json.dumps(told),
                "--profile",
                "kind=synchronous",
                "--constraint",
                "kind=max_requests,count=4",
                "--data",
                json.dumps(data),
                "--output",
                f"kind=json,path={out}",
                "--disable-console",
                *more,
            ],
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "HF_DATASETS_OFFLINE": "1",
                "HF_HOME": str(tmp_path / "hf"),
                "GUIDELLM__LOGGING__DISABLED": "true",
            },
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        (found,) = json.loads(out.read_text())["benchmarks"]
        return found

    return run


def check(found):
    totals = found["metrics"]["request_totals"]
    assert totals["successful"] == 4 and totals["errored"] == 0, totals
    assert found["metrics"]["output_token_count"]["successful"]["mean"] > 0
    assert found["metrics"]["time_to_first_token_ms"]["successful"]["mean"] >= 0


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_given_prompts(benchmark, tmp_path, route, stream):
    if not stream and route != "/v1/chat/completions":
        pytest.skip("one whole run is enough")
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in PROMPTS))
    found = benchmark({"kind": "json_file", "path": str(file)}, request_format=route, stream=stream, max_tokens=8)
    if stream:
        check(found)
    else:
        assert found["metrics"]["request_totals"]["successful"] == 4


def test_synthetic_prompts(benchmark):
    """Token counts are asked for: ignore_eos = true and stop = null go along."""
    tokenizer = os.environ.get("HETERO_TOKENIZER")
    if not tokenizer:
        pytest.skip("HETERO_TOKENIZER: a Hugging Face tokenizer directory of the served model")
    data = {"kind": "synthetic_text", "prompt_tokens": 16, "output_tokens": 8}
    check(benchmark(data, "--tokenizer", f"kind=huggingface_auto,model={tokenizer}"))
