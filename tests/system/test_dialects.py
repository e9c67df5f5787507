"""The other dialects, as their clients read them: events in their order, blocks that add up, errors in their shapes."""

from __future__ import annotations

import json

import httpx
import pytest
from helpers.running_server import RunningServer

PERSON = {"type": "object", "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["cat", "dog"]}},
          "required": ["ok", "kind"], "additionalProperties": False}  # fmt: skip
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def stack():
    made = RunningServer(strategy="serial", port=0)
    yield made
    made.settled()
    made.close()


def post(stack: RunningServer, route: str, **body: object) -> httpx.Response:
    return httpx.post(stack.url + route, json=body, timeout=120)


def events(found: httpx.Response) -> list[dict]:
    """Server-sent events; each is named as its type is."""
    assert found.status_code == 200 and found.headers["content-type"].startswith("text/event-stream"), found.text
    parsed = []
    for block in found.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines.get("data", "").startswith("{"):
            parsed.append(json.loads(lines["data"]))
            assert lines.get("event", parsed[-1].get("type")) == parsed[-1].get("type")
    return parsed


# Responses


def test_a_response_is_the_same_streamed(stack):
    asked = {"input": "hi", "instructions": "Be kind.", "max_output_tokens": 20, "temperature": 0}
    whole = post(stack, "/v1/responses", **asked).json()
    assert whole["object"] == "response" and whole["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    (message,) = whole["output"]
    assert message["type"] == "message" and message["content"][0]["type"] == "output_text"
    found = events(post(stack, "/v1/responses", **asked, stream=True))
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    text = "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")
    assert text == message["content"][0]["text"] == found[-1]["response"]["output"][0]["content"][0]["text"]
    usage = found[-1]["response"]["usage"]
    assert usage["output_tokens"] == 20 and usage["total_tokens"] == usage["input_tokens"] + 20


def test_a_response_calls_a_function(stack):
    tool = {"type": "function", "name": "feed", "parameters": PERSON, "strict": True}
    asked = {"input": HI, "tools": [tool, {"type": "web_search"}], "tool_choice": "required", "seed": 1,
             "parallel_tool_calls": False, "max_output_tokens": 200}  # fmt: skip
    found = post(stack, "/v1/responses", **asked)
    assert "tools.N" in found.headers["x-hetero-ignored"]
    (call,) = found.json()["output"]
    assert call["type"] == "function_call" and call["name"] == "feed" and call["status"] == "completed"
    assert set(json.loads(call["arguments"])) == {"ok", "kind"}
    streamed = events(post(stack, "/v1/responses", **asked, stream=True))
    deltas = [event["delta"] for event in streamed if event["type"] == "response.function_call_arguments.delta"]
    done = next(event for event in streamed if event["type"] == "response.function_call_arguments.done")
    assert deltas and "".join(deltas) == done["arguments"]
    # The whole conversation goes back, as nothing is stored.
    items = [
        *HI,
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "fed"},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Go on."}]},
    ]
    again = post(stack, "/v1/responses", input=items, tools=[tool], max_output_tokens=5).json()
    assert again["output"][0]["content"][0]["text"]


def test_a_response_of_a_schema(stack):
    shape = {"format": {"type": "json_schema", "name": "p", "schema": PERSON, "strict": True}}
    found = post(stack, "/v1/responses", input="x", text=shape, max_output_tokens=100).json()
    assert set(json.loads(found["output"][0]["content"][0]["text"])) == {"ok", "kind"}
    assert found["text"]["format"]["name"] == "p" and found["status"] == "completed"


def test_logprobs_in_other_dialects(stack):
    asked = {"input": "x", "top_logprobs": 2, "include": ["message.output_text.logprobs"], "max_output_tokens": 8}
    part = post(stack, "/v1/responses", **asked).json()["output"][0]["content"][0]
    assert len(part["logprobs"]) == 8 and len(part["logprobs"][0]["top_logprobs"]) == 2
    parts = events(post(stack, "/v1/responses", **asked, stream=True))
    assert sum(len(e["logprobs"]) for e in parts if e["type"] == "response.output_text.delta") == 8
    raw = {"prompt": "x", "raw": True}
    for route, more in (("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "x"}), ("/api/generate", raw)):
        told = post(
            stack, route, **more, logprobs=True, top_logprobs=2, stream=False, options={"num_predict": 5}
        ).json()
        assert len(told["logprobs"]) == 5 and len(told["logprobs"][0]["top_logprobs"]) == 2


@pytest.mark.parametrize(
    "body, words",
    [
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id: nothing is stored here"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0: nothing is stored here"),
        ({"input": [*HI, {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input.1.content.0: images are not supported"),
        ({"input": []}, "input: it is empty"),
        ({"input": [{"type": "strange"}]}, "input.0.type: items of type strange"),
        ({"input": "x", "background": True}, "background: nothing is stored here"),
    ],
)  # fmt: skip
def test_what_responses_cannot_do_is_told(stack, body, words):
    found = post(stack, "/v1/responses", **body)
    assert found.status_code == 400 and found.json()["error"]["message"].startswith(words), found.text
    assert httpx.get(f"{stack.url}/v1/responses/resp_1").status_code == 404


# Messages


def test_a_message_is_the_same_streamed(stack):
    asked = {"model": "claude", "messages": HI, "system": [{"type": "text", "text": "Be kind."}], "max_tokens": 20,
             "temperature": 0}  # fmt: skip
    whole = post(stack, "/v1/messages", **asked).json()
    assert whole["type"] == "message" and whole["role"] == "assistant" and whole["stop_reason"] == "max_tokens"
    assert whole["usage"]["output_tokens"] == 20 and whole["content"][0]["type"] == "text"
    found = events(post(stack, "/v1/messages", **asked, stream=True))
    kinds = [event["type"] for event in found]
    assert kinds[0] == "message_start" and kinds[1] == "ping" and kinds[2] == "content_block_start"
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(event["delta"]["text"] for event in found if event["type"] == "content_block_delta")
    assert text == whole["content"][0]["text"]
    assert found[-2]["delta"]["stop_reason"] == "max_tokens" and found[-2]["usage"]["output_tokens"] == 20
    count = post(stack, "/v1/messages/count_tokens", **asked).json()
    usage = whole["usage"]
    assert count["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_a_message_uses_a_tool(stack):
    tool = {"name": "feed", "description": "Feed", "input_schema": PERSON}
    asked = {"messages": HI, "tools": [tool, {"type": "bash_20250124", "name": "bash"}], "seed": 1, "max_tokens": 200,
             "tool_choice": {"type": "tool", "name": "feed", "disable_parallel_tool_use": True}}  # fmt: skip
    found = post(stack, "/v1/messages", **asked).json()
    (use,) = found["content"]
    assert found["stop_reason"] == "tool_use" and use["type"] == "tool_use" and set(use["input"]) == {"ok", "kind"}
    streamed = events(post(stack, "/v1/messages", **asked, stream=True))
    parts = [event["delta"]["partial_json"] for event in streamed if event["type"] == "content_block_delta"]
    # In few parts, perhaps: it is looked up in the answer before.
    assert parts and set(json.loads("".join(parts))) == {"ok", "kind"}
    chat = [
        *HI,
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use["id"], "content": [
            {"type": "text", "text": "fed"}]}, {"type": "text", "text": "And?"}]},
    ]  # fmt: skip
    assert post(stack, "/v1/messages", messages=chat, tools=[tool], max_tokens=5).json()["content"][0]["text"]


def test_a_message_goes_on_and_stops(stack):
    chat = [*HI, {"role": "assistant", "content": "import "}]
    found = post(stack, "/v1/messages", messages=chat, max_tokens=30, temperature=0).json()
    text = found["content"][0]["text"]
    cut = post(stack, "/v1/messages", messages=chat, max_tokens=30, temperature=0, stop_sequences=[text[3:6]]).json()
    assert cut["stop_reason"] == "stop_sequence" and cut["stop_sequence"] == text[3:6]
    prompt = post(stack, "/apply-template", messages=[*HI, {**chat[1], "prefix": True}]).json()["prompt"]
    assert prompt.endswith("import ")


def test_errors_of_messages_are_theirs(stack):
    for body, words in (
        ({"messages": []}, "messages must not be empty"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages.0.content.0: images are not supported",
        ),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role"),
        ({"messages": HI, "temperature": 1000}, "temperature"),
    ):
        found = post(stack, "/v1/messages", **body).json()
        assert found["type"] == "error" and found["error"]["type"] == "invalid_request_error"
        assert found["error"]["message"].startswith(words), found
    thread = post(stack, "/v1/messages", messages=HI, thread={"type": "create"})
    assert thread.status_code == 400 and thread.json()["error"]["details"]["error_code"] == "thread_unsupported_request"


# Ollama


def test_ollamas_routes(stack):
    assert httpx.get(f"{stack.url}/api/version").json()["version"]
    (model,) = httpx.get(f"{stack.url}/api/tags").json()["models"]
    assert model["name"] == "builtin" and model["size"] > 0 and model["details"]["format"] == "gguf"
    shown = post(stack, "/api/show", model="builtin").json()
    assert "tools" in shown["capabilities"] and shown["model_info"]["general.architecture"] == "llama"
    asked = {"messages": HI, "options": {"temperature": 0, "num_predict": 20, "num_ctx": 4096}}
    found = post(stack, "/api/chat", **asked)
    lines = [json.loads(line) for line in found.text.splitlines()]
    assert (
        found.headers["content-type"] == "application/x-ndjson"
        and found.headers["x-hetero-ignored"] == "options.num_ctx"
    )
    assert lines[-1]["done"] and lines[-1]["done_reason"] == "length" and lines[-1]["eval_count"] == 20
    assert not any(line["done"] for line in lines[:-1])
    whole = post(stack, "/api/chat", **asked, stream=False).json()
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"]
    answer = post(stack, "/api/generate", prompt="x = ", raw=True, stream=False, options={"num_predict": 5}).json()
    assert answer["response"] and answer["done"] and answer["eval_count"] == 5
    assert post(stack, "/api/generate", prompt="x", system="y", stream=False, options={"num_predict": 5}).json()[
        "response"
    ]
    assert (
        post(stack, "/api/chat").json()["done_reason"] == post(stack, "/api/generate").json()["done_reason"] == "load"
    )
    shaped = post(stack, "/api/chat", messages=HI, format=PERSON, stream=False).json()
    assert set(json.loads(shaped["message"]["content"])) == {"ok", "kind"}
    for body, words in (
        ({"messages": [{"role": "user", "content": "x", "images": ["AA=="]}]}, "messages.0.images: images are not"),
        ({"messages": HI, "format": "xml"}, "format: must be"),
        ({"messages": HI, "options": {"temperature": "warm"}}, "temperature must be a number"),
    ):
        refused = post(stack, "/api/chat", **body)
        assert refused.status_code == 400 and refused.json()["error"].startswith(words), refused.text
    assert post(stack, "/api/embed", input="x").status_code == 501


def test_ollama_is_told_of_calls_that_were_made(stack):
    """The model calls nothing by itself; what comes back of a conversation with calls must be read."""
    call = {"function": {"name": "feed", "arguments": {"kind": "cat"}}}
    chat = [
        *HI,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "feed", "content": "fed"},
    ]
    tool = {"type": "function", "function": {"name": "feed", "parameters": PERSON}}
    found = post(stack, "/api/chat", messages=chat, tools=[tool], stream=False, options={"num_predict": 5}).json()
    assert found["message"]["content"]


# llama-server and vLLM


def test_llama_servers_routes(stack):
    tokens = post(stack, "/tokenize", content="def f(x):\n").json()["tokens"]
    assert post(stack, "/detokenize", tokens=tokens).json()["content"] == "def f(x):\n"
    pieces = post(stack, "/tokenize", content="def é", with_pieces=True).json()["tokens"]
    assert "".join(p["piece"] for p in pieces if isinstance(p["piece"], str)).startswith("def")
    assert post(stack, "/tokenize", prompt="def f(x):\n").json()["count"] == len(tokens) + 1  # with its beginning
    assert post(stack, "/tokenize", messages=HI).json()["count"] > 2
    assert "hi" in post(stack, "/apply-template", messages=HI).json()["prompt"]
    props = httpx.get(f"{stack.url}/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 2048 and props["total_slots"] == 4
    assert len(httpx.get(f"{stack.url}/slots").json()) == 4
    assert httpx.get(f"{stack.url}/tokenizer_info").json()["eos_token"]
    asked = {"prompt": "x = ", "n_predict": 12, "temperature": 0, "n_probs": 2}
    whole = post(stack, "/completion", **asked).json()
    assert whole["stop"] and whole["stop_type"] == "limit" and whole["tokens_predicted"] == 12
    assert len(whole["completion_probabilities"]) == 12 and whole["timings"]["predicted_n"] == 12
    parts = events(post(stack, "/completion", **asked, stream=True))
    assert "".join(part["content"] for part in parts) == whole["content"] and parts[-1]["stop"]
    assert (
        post(stack, "/v1/embeddings", input="x").json()["error"]["message"].startswith("embeddings are not to be had")
    )
    assert post(stack, "/detokenize", tokens=[1 << 30]).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_aliases(stack, host):
    url = stack.url.replace("127.0.0.1", host)
    assert httpx.post(f"{url}/chat/completions", json={"messages": HI, "max_tokens": 2}, timeout=60).status_code == 200
    assert httpx.get(f"{url}/models").json()["data"][0]["id"] == "builtin"
