"""Codex, headless and without login (HETERO_NODE: where npm put it): /v1/responses, streamed, tools offered."""

import json
import os
import subprocess
from pathlib import Path

import pytest

CODEX = Path(os.environ["HETERO_NODE"]) / "node_modules/.bin/codex"
# Without these the first request is 40 kB long; with them 6 kB.
SHORT = [
    "include_permissions_instructions=false",
    "include_environment_context=false",
    "include_apps_instructions=false",
    "include_collaboration_mode_instructions=false",
    'web_search="disabled"',
    "skills.include_instructions=false",
    "features.goals=false",
    "features.multi_agent=false",
]


@pytest.fixture
def codex(url, key, model, tmp_path):
    home = tmp_path / "codex"
    home.mkdir()
    (tmp_path / "brief.md").write_text("Be brief.\n")
    (home / "config.toml").write_text(
        f"""model = "{model}"
model_provider = "hetero"
model_instructions_file = "{tmp_path}/brief.md"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.hetero]
name = "hetero"
base_url = "{url}/v1"
env_key = "HETERO_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
    )

    def run(*args):
        (tmp_path / "work").mkdir(exist_ok=True)
        done = subprocess.run(
            [
                CODEX,
                "exec",
                "--json",
                "--skip-git-repo-check",
                "-s",
                "read-only",
                "-C",
                tmp_path / "work",
                *[x for each in SHORT for x in ("-c", each)],
                *args,
            ],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CODEX_HOME": str(home), "HETERO_KEY": key},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return done.returncode, events, done.stdout + done.stderr

    return run


def test_turn(codex):
    """A toy model writes until its context is full (Codex sends no limit); that is told as an incomplete response."""
    code, events, text = codex("Say hi")
    kinds = [event["type"] for event in events]
    if code:
        assert "Incomplete response returned, reason: max_output_tokens" in text, text[-2000:]
        return
    assert kinds[-1] == "turn.completed", text[-2000:]
    usage = events[-1]["usage"]
    assert usage["input_tokens"] > 0 and usage["output_tokens"] > 0
