"""Real clients, as people install them, each with a real conversation (``tests/clients``): run with ``-m clients``."""

from __future__ import annotations

import pytest
from helpers.clients import checkpoint, environment, node_folder, run, talk
from helpers.running_server import RunningServer

PYTHON = [
    "openai",
    "anthropic",
    "ollama",
    "litellm",
    "langchain",
    "pydantic_ai",
    "openai_agents",
    "lm_eval",
    "guidellm",
]
NODE = ["ai_sdk", "openai", "anthropic", "ollama"]
AGENTS = ["codex", "claude_code"]

pytestmark = [pytest.mark.clients, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def server():
    made = RunningServer(exact=True, strategy="serial", port=0)
    yield made
    made.settled()
    made.close()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("name", PYTHON)
def test_python_clients(server, tokenizer, name):
    talk(environment("requirements"), name, server.url, HETERO_TOKENIZER=str(tokenizer))


def test_instructor(server):
    talk(environment("instructor"), "instructor", server.url)


@pytest.mark.parametrize("name", AGENTS)
def test_coding_agents(server, name):
    talk(environment("requirements"), name, server.url, HETERO_NODE=str(node_folder()))


@pytest.mark.parametrize("name", NODE)
def test_node_clients(server, name):
    said = run("node", node_folder() / f"{name}.mjs", HETERO_URL=server.url, HETERO_MODEL="builtin")
    print(f"{name}: {said.strip().splitlines()[-1]}")
