"""The server under test: HETERO_URL (no /v1), HETERO_KEY where it asks for keys, HETERO_MODEL (default: the first
served)."""

import json
import os
import urllib.request

import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # litellm fetches its prices from GitHub otherwise
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")  # traces go to api.openai.com otherwise


@pytest.fixture(scope="session")
def url():
    return os.environ.get("HETERO_URL", "http://127.0.0.1:8000").rstrip("/")


@pytest.fixture(scope="session")
def key():
    return os.environ.get("HETERO_KEY", "none")


@pytest.fixture(scope="session")
def model(url, key):
    if name := os.environ.get("HETERO_MODEL"):
        return name
    asked = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    return json.load(urllib.request.urlopen(asked, timeout=30))["data"][0]["id"]
