"""Several models of one ``hetero serve``: listed, loaded when they are named, unloaded when nobody asks."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import openai
import psutil
import pytest
from helpers.builtin_pair import DRAFTER, NO_END, TARGET
from helpers.real_workers import until
from helpers.server_process import free_port, serve, wait_ready

ENGINES = "target_engine: octet\ndraft_engine: octet\n"  # so that none is tried


@pytest.mark.long
def test_further_models_come_when_they_are_named_and_go_when_they_rest(tmp_path):
    twin, small = tmp_path / "twin.yaml", tmp_path / "small.yaml"
    twin.write_text(f"target: {TARGET}\ndraft: {DRAFTER}\nalias: twin\nkeep_alive: 30\n{ENGINES}")
    small.write_text(f"target: {DRAFTER}\ndraft: none\nalias: small\ntarget_engine: octet\n")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    more = [word for file in (twin, small) for word in ("--also-serve", str(file))]
    process = serve(
        port, "--alias", "first", "--api-key", "k", "--target-engine", "octet", "--draft-engine", "octet", *more
    )
    try:
        wait_ready(url, process)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", timeout=120)
        assert [model.id for model in client.models.list()] == ["first", "twin", "small"]
        key = {"Authorization": "Bearer k"}

        def loaded() -> list[str]:
            return [model["name"] for model in httpx.get(f"{url}/api/ps", headers=key).json()["models"]]

        assert loaded() == ["first"]
        # Nothing loads for whoever has no key.
        for path, status in (("/v1/completions", 401), ("/health", 401), ("/ping", 401)):
            assert httpx.post(f"{url}{path}", json={"model": "twin", "prompt": "x"}).status_code == status
        assert loaded() == ["first"]

        def text(model: str) -> str:
            answer = client.completions.create(
                model=model, prompt="import os\n", max_tokens=60, seed=3, logit_bias=NO_END, temperature=0.8
            )
            assert answer.model == model
            return answer.choices[0].text

        def verifiers() -> int:
            count = 0
            for one in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.Error):  # it ends just now
                    count += "VerifierActor" in " ".join(one.cmdline())
            return count

        with ThreadPoolExecutor(6) as pool:  # all at once: each model is loaded once
            found = list(pool.map(text, ["twin", "first", "small", "twin", "first", "small"]))
        assert found[:3] == found[3:] and found[0] == found[1] != found[2]
        assert loaded() == ["first", "twin", "small"]
        told = httpx.get(f"{url}/metrics?model=small", headers=key).text
        assert 'hetero:sequences_total{reason="length"} 2.0' in told
        stream = client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "hello"}], max_tokens=5, stream=True
        )
        assert sum(len(chunk.choices) for chunk in stream) > 0
        assert verifiers() == 3
        until(lambda: loaded() == ["first", "small"], 90)
        until(lambda: verifiers() == 2, 30)
        assert text("twin") == found[0]  # and back
        assert httpx.post(f"{url}/api/show", json={"model": "small:latest"}, headers=key).status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=90)[0]
    assert process.returncode == 0, said
    assert said.count("twin: loaded in") == 2 and "twin: unloaded: nobody asks for it" in said
