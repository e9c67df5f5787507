"""Messages as a template can take them: no instruction is lost, and no call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from hetero.gateway.chat.abilities import Abilities
from hetero.gateway.requests.messages import ChatMessage, ToolCall

_LONGEST = 1 << 20  # characters of a call's arguments that are read
_REASONED = ("reasoning_content", "reasoning", "thinking")  # templates know it by one of these
_BEGIN = "(The conversation goes on.)"  # where a template wants a user's message first


def fold(asked: list[ChatMessage], can: Abilities, instructions: str = "") -> list[dict[str, Any]]:
    """The messages for a template of these abilities; ``instructions``: of tools it does not know."""
    system = [instructions] if instructions else []
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of functions, by the ids of their calls
    for message in asked:
        if message.role in ("system", "developer"):
            if messages and can.anywhere:
                messages.append({"role": "system", "content": message.text})
            else:
                system.append(message.text)
            continue
        names.update((call.id, call.function.name) for call in message.tool_calls)
        messages.append(_one(message, can, names))
    instruction = "\n\n".join(text for text in system if text)
    if system and can.system:
        messages.insert(0, {"role": "system", "content": instruction})
    elif instruction:
        _to_first_user(messages, instruction)
    if not can.opens_with_assistant and _first_role(messages) == "assistant":
        messages.insert(1 if messages[0]["role"] == "system" else 0, {"role": "user", "content": _BEGIN})
    if not can.repeats:
        messages = _joined(messages)
    if can.parts:
        messages = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    return messages


def _one(message: ChatMessage, can: Abilities, names: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.name:
        found["name"] = message.name
    if message.role == "tool":
        called = message.name or names.get(message.tool_call_id or "", "")
        if not (can.results and names):  # nor is one behind no call any template's
            return {"role": "user", "content": f"<tool_response>\n{message.text}\n</tool_response>"}
        found |= {"name": called, "tool_call_id": _call_id(message.tool_call_id or "", can)}
    if message.role == "assistant":
        if message.reasoned:
            found |= dict.fromkeys(_REASONED, message.reasoned)
        if message.tool_calls and can.calls:
            found["tool_calls"] = [_call(call, can) for call in message.tool_calls]
        elif message.tool_calls:
            written = "\n".join(_written(call) for call in message.tool_calls)
            found["content"] = f"{message.text}\n{written}" if message.text else written
    return found


def _call(call: ToolCall, can: Abilities) -> dict[str, Any]:
    arguments = _arguments(call)
    if can.texts and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": _call_id(call.id, can), "type": "function", "function": function}


def _arguments(call: ToolCall) -> Any:
    """The arguments of a call as an object, since templates write them as JSON; "" and "null" are none."""
    given = call.function.arguments
    if isinstance(given, str) and len(given) <= _LONGEST:
        with suppress(ValueError, RecursionError):
            given = json.loads(given) if given.strip() else {}
    return {} if given is None else given


def _call_id(given: str, can: Abilities) -> str:
    """An id as the template takes them; the same for the same."""
    nine = len(given) == 9 and given.isalnum() and given.isascii()
    return hashlib.blake2b(given.encode(errors="replace")).hexdigest()[:9] if can.nine and not nine else given


def _written(call: ToolCall) -> str:
    said = {"name": call.function.name, "arguments": _arguments(call)}
    return f"<tool_call>\n{json.dumps(said, ensure_ascii=False)}\n</tool_call>"


def _first_role(messages: list[dict[str, Any]]) -> str:
    return next((message["role"] for message in messages if message["role"] != "system"), "")


def _to_first_user(messages: list[dict[str, Any]], instruction: str) -> None:
    for message in messages:
        if message["role"] == "user":
            message["content"] = f"{instruction}\n\n{message['content']}"
            return
    messages.insert(0, {"role": "user", "content": instruction})


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One message for those of one role in a row, but for calls and their results."""
    found: list[dict[str, Any]] = []
    for message in messages:
        last = found[-1] if found else None
        simple = not message.get("tool_calls") and message["role"] != "tool"
        if last is not None and last["role"] == message["role"] and simple and not last.get("tool_calls"):
            last["content"] = "\n\n".join(text for text in (last["content"], message["content"]) if text)
        else:
            found.append(message)
    return found


def shapes(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The messages in one shape after another, each asking less of a template than the one before: calls one by one; no
    reasoning beside a text with calls; texts that stand beside calls in messages of their own; those, and what a user
    says after a result, within the result; a user's message at the beginning."""
    yield messages
    if any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
        single = _singly(messages)
        yield single
        bare = [_unreasoned(message) for message in single]
        yield bare
        yield [part for message in bare for part in _parted(message)]
        messages = _into_results(bare)
        yield messages
    if not any(message["role"] == "user" for message in messages):
        first = 1 if messages[0]["role"] == "system" else 0
        yield [*messages[:first], {"role": "user", "content": _like(messages, _BEGIN)}, *messages[first:]]


def shown(messages: list[dict[str, Any]], prompt: str) -> bool:
    """Whether a prompt has all that was said and called, reasoning aside."""
    for message in messages:
        content = message["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        if text.strip() and text.strip() not in prompt:
            return False
        if any(call["function"]["name"] not in prompt for call in message.get("tool_calls", [])):
            return False
    return True


def _singly(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each call in a message of its own, with its result behind it."""
    found: list[dict[str, Any]] = []
    taken: set[int] = set()
    for n, message in enumerate(messages):
        if n in taken:
            continue
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            found.append(message)
            continue
        end = next((m for m in range(n + 1, len(messages)) if messages[m]["role"] != "tool"), len(messages))
        for at, call in enumerate(calls):
            first = message if at == 0 else {"role": "assistant", "content": _like(messages, "")}
            found.append({**first, "tool_calls": [call]})
            own = [m for m in range(n + 1, end) if messages[m].get("tool_call_id") == call["id"] and m not in taken]
            found += [messages[m] for m in own]
            taken.update(own)
    return found


def _unreasoned(message: dict[str, Any]) -> dict[str, Any]:
    if not (message.get("tool_calls") and message["content"]):
        return message
    return {key: value for key, value in message.items() if key not in _REASONED}


def _parted(message: dict[str, Any]) -> list[dict[str, Any]]:
    if not (message.get("tool_calls") and message["content"]):
        return [message]
    return [{"role": "assistant", "content": message["content"]}, {**message, "content": type(message["content"])()}]


def _into_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What would stand where a template wants none goes into the result beside it."""
    found: list[dict[str, Any]] = []
    waiting: Any = None  # a text beside a call, for its result
    for message in messages:
        last = found[-1] if found else None
        if message.get("tool_calls") and message["content"]:
            waiting, message = message["content"], {**message, "content": type(message["content"])()}
        elif message["role"] == "tool" and waiting is not None:
            message, waiting = {**message, "content": _together(waiting, message["content"])}, None
        elif message["role"] == "user" and last is not None and last["role"] == "tool":
            found[-1] = {**last, "content": _together(last["content"], message["content"])}
            continue
        found.append(message)
    return found


def _together(one: Any, two: Any) -> Any:
    """Two contents as one, both texts or both lists of parts."""
    if isinstance(one, list):
        return [*one, {"type": "text", "text": "\n\n"}, *two]
    return f"{one}\n\n{two}"


def _like(messages: list[dict[str, Any]], text: str) -> Any:
    """A text as the contents of these messages are."""
    return [{"type": "text", "text": text}] if isinstance(messages[0]["content"], list) else text
