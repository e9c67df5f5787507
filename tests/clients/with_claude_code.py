"""Claude Code, headless and without login (HETERO_NODE: where npm put it): HEAD /, /v1/messages?beta=true."""

import json
import os
import subprocess
from pathlib import Path

import pytest

CLAUDE = Path(os.environ["HETERO_NODE"]) / "node_modules/.bin/claude"


@pytest.fixture
def claude(url, key, model, tmp_path):
    def run(*args, tokens="60"):
        (tmp_path / "work").mkdir(exist_ok=True)
        done = subprocess.run(
            [CLAUDE, "-p", "Say hi", "--output-format", "json", *args],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "CLAUDE_CONFIG_DIR": str(tmp_path / ".claude"),
                "ANTHROPIC_BASE_URL": url,
                "ANTHROPIC_AUTH_TOKEN": key,
                "ANTHROPIC_MODEL": model,
                "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
                "CLAUDE_CODE_MAX_OUTPUT_TOKENS": tokens,
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "DISABLE_AUTOUPDATER": "1",
                "API_TIMEOUT_MS": "120000",
                "CLAUDE_CODE_MAX_RETRIES": "0",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path / "work",
        )
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


# Without a system prompt and tools of one's own the request is 76 kB long.
@pytest.mark.parametrize("tools", ["", "Bash"])
def test_turn(claude, tools):
    """An answer cut short is asked to go on three times and then told as an error: what a toy model does."""
    found = claude("--tools", tools, "--system-prompt", "Be brief.")
    cut = found["is_error"] and "output token maximum" in found["result"]
    assert cut or (not found["is_error"] and isinstance(found["result"], str)), found
    assert found["usage"]["input_tokens"] > 0 and found["usage"]["output_tokens"] > 0
