"""A chat, of whichever dialect: messages to a prompt, tools and schemas to a grammar, and how its answer is read."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from hetero.errors import RequestError
from hetero.gateway.answers.answer import Answer, Dialect
from hetero.gateway.answers.choice import Choice
from hetero.gateway.chat.formats import Format
from hetero.gateway.chat.lark import calls_grammar, output_grammar, text_parameters
from hetero.gateway.chat.messages import fold, shapes
from hetero.gateway.chat.reader import reader
from hetero.gateway.chat.thinking import thinking_of
from hetero.gateway.client import ask
from hetero.gateway.requests.fields import predicted
from hetero.gateway.requests.openai import ChatRequest, OpenRequest
from hetero.gateway.requests.reading import printable
from hetero.gateway.requests.tools import Function
from hetero.gateway.routes.generation import Asked, check_model, check_prompt, check_tokens, encode, told
from hetero.gateway.state import GatewayState
from hetero.workers.wire.messages import MAX_GRAMMAR

_ANY = {"type": "object"}
_LOOKED_AT = 6.0  # seconds in which a request's tools are looked at; the others' arguments are any JSON
_MOST_SAID = 400  # characters of a header on what was relaxed


@dataclass
class Prompt:
    """A chat as the model is given it. ``opened``: it ends within reasoning; ``go_on``: within an answer's text."""

    text: str
    tokens: list[int]
    form: Format
    opened: bool
    go_on: bool


@dataclass
class _Relaxed:
    """What of the schemas could not be kept."""

    said: list[str] = field(default_factory=list)

    def headers(self) -> dict[str, str]:
        text = "; ".join(self.said)
        return {"x-hetero-relaxed": printable(text, _MOST_SAID)} if text else {}


async def prompt_of(state: GatewayState, body: ChatRequest) -> Prompt:
    """The prompt of a chat. Raises RequestError and Busy."""
    tools = body.offered
    form = state.format(bool(tools))
    can = await state.template.abilities(bool(tools))
    offered = [tool.function for tool in tools]
    messages = fold(body.messages, can, _instructions(offered) if tools and not can.tools else "")
    last = body.messages[-1]
    go_on = body.continue_final_message or last.prefix
    if go_on and (last.role != "assistant" or not last.text.strip()):
        raise RequestError(
            "continue_final_message: the last message must be the assistant's, with a text to go on with",
            "continue_final_message",
        )
    more = dict(body.template_kwargs)
    if not body.add_generation_prompt:
        more["add_generation_prompt"] = False
    text = await state.template.render(shapes(messages), [_dumped(tool) for tool in offered], more, go_on)
    # A template that writes the BOS token itself must not get a second one.
    special = not (state.template.bos and text.startswith(state.template.bos))
    tokens = await encode(state, text, "messages", special)
    if not tokens:
        raise RequestError("messages: the model's chat template makes an empty prompt of them", "messages")
    return Prompt(text, tokens, form, form.opened(text), go_on)


async def chat(state: GatewayState, body: ChatRequest, dialect: Dialect, ignored: list[str]) -> Asked:
    """What is asked of the verifier. Raises RequestError and Busy."""
    headers = told(ignored) | check_model(state, body.model)
    prompt = await prompt_of(state, body)
    check_prompt(state, [prompt.tokens], "messages")
    check_tokens(state, body)
    form, tools = prompt.form, [tool.function for tool in body.offered]
    thinks = bool(form.end_of_thinking())
    relaxed = _Relaxed()
    grammar = await _grammar(state, body, form, tools, thinks, relaxed)
    budget = body.budget
    thinking = None
    if (grammar or budget is not None) and not prompt.go_on:
        thinking = thinking_of(form, prompt.opened, budget, lambda text: state.tokenizer.encode(text, False))
    prediction = predicted(body.prediction)
    samplings = body.samplings(state.options.defaults, body.n)
    vocabulary = state.tokenizer.vocabulary
    more: dict[str, Any] = {
        **opening_fields(body),
        "grammar": grammar,
        "shown": list(form.tokens.values()),
        "thinking": thinking,
        "prediction": (await encode(state, prediction, "prediction", False))[: state.context] if prediction else [],
    }
    openings = [ask(prompt.tokens, sampling, body.limit or state.context, body.stop, **more) for sampling in samplings]
    texts = {tool.name: text_parameters(tool) for tool in tools} if tools else None
    read = [reader(form, opened=prompt.opened, tools=texts, go_on=prompt.go_on) for _ in range(body.n)]
    choices = [Choice(n, vocabulary, each) for n, each in enumerate(read)]
    answer = Answer(state.name, choices, [len(prompt.tokens)], state.fingerprint)
    return Asked(answer, openings, dialect, body.stream, headers | relaxed.headers())


def opening_fields(body: OpenRequest) -> dict[str, Any]:
    """What of a request the verifier is told as it stands."""
    return {
        "plain": not body.speculation,
        "stop_ids": body.stop_token_ids,
        "ignore_end": body.ignore_eos,
        "special": not body.skip_special_tokens,
    }


async def constrained(state: GatewayState, body: OpenRequest, gap: bool = False) -> tuple[str, dict[str, str]]:
    """The grammar of outputs under the request's own constraint, "" without one, and the headers on what of it could
    not be kept. Raises RequestError and Busy."""
    relaxed = _Relaxed()
    found = await _constraint(state, body, relaxed)
    if found is None:
        return "", {}
    kind, value, field_ = found
    grammar = _built(lambda: output_grammar((kind, value), gap), field_)
    await _check(state, grammar, field_)
    return grammar, relaxed.headers()


async def _grammar(
    state: GatewayState, body: ChatRequest, form: Format, tools: list[Function], thinks: bool, relaxed: _Relaxed
) -> str:
    """The grammar a chat's answer must obey; "" for free text."""
    if not tools:
        grammar, headers = await constrained(state, body, thinks)
        relaxed.said += headers.values()
        return grammar
    kept = []
    end = time.monotonic() + _LOOKED_AT
    for tool in tools:
        found = await state.probe.relaxed(tool.parameters) if time.monotonic() < end else ""
        schema, lost = (_ANY, ["all of it"]) if isinstance(found, str) else found
        if schema.get("type", "object") != "object":  # arguments are one
            schema, lost = _ANY, ["all of it"]
        schema = {"type": "object", **schema}
        if lost:
            relaxed.said.append(f"{tool.name}: {', '.join(lost)}")
        kept.append(Function(name=tool.name, parameters=schema))
    constraint = await _constraint(state, body, relaxed)
    wanted = constraint[:2] if constraint is not None else None
    needed = body.tool_choice.mode == "required"
    several = body.parallel_tool_calls and not body.tool_choice.names  # a named function is called once
    for each in (kept, [Function(name=tool.name, parameters=_ANY) for tool in kept]):
        grammar = _built(lambda: calls_grammar(form, each, needed, several, thinks, wanted), "tools")  # noqa: B023
        if grammar and len(grammar) <= MAX_GRAMMAR and await state.probe.objection(grammar) is None:
            return grammar
        if not grammar:
            break
        relaxed.said.append("all tools: their schemas are too much together")
    relaxed.said += ["tools: the model calls them as it likes"] + ["tool_choice"] * needed
    grammar, headers = await constrained(state, body, thinks)
    relaxed.said += headers.values()
    return grammar


async def _constraint(state: GatewayState, body: OpenRequest, relaxed: _Relaxed) -> tuple[str, Any, str] | None:
    """The request's own, in a form the library can do."""
    found = body.constraint
    if found is None or found[0] != "json":
        return found
    _, schema, field_ = found
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{field_}: it is not JSON: {error}", field_) from None
    if not isinstance(schema, dict):
        return "json", schema, field_  # what is wrong with it is told when it is compiled
    usable = await state.probe.relaxed(schema)
    if isinstance(usable, str):
        raise RequestError(f"{field_}: the schema cannot be used: {usable}", field_)
    if usable[1]:
        relaxed.said.append(f"{field_}: {', '.join(usable[1])}")
    return "json", usable[0], field_


def _built(make: Any, param: str) -> str:
    try:
        found: str = make()
        found.encode()
    except (ValueError, RecursionError) as error:  # half a surrogate pair among them
        raise RequestError(f"{param}: the schema cannot be used: {error}", param) from None
    return found


async def _check(state: GatewayState, grammar: str, param: str) -> None:
    if len(grammar) > MAX_GRAMMAR:
        raise RequestError(f"{param}: the schema's {len(grammar)} characters are more than {MAX_GRAMMAR}", param)
    if (wrong := await state.probe.objection(grammar)) is not None:
        raise RequestError(f"{param}: the schema cannot be used: {wrong}", param)


def _dumped(tool: Function) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude_none=True)}


def _instructions(tools: list[Function]) -> str:
    """What a model is told whose chat template does not speak of tools."""
    listed = "\n".join(json.dumps(_dumped(tool), ensure_ascii=False) for tool in tools)
    return (
        f"You may call these functions:\n<tools>\n{listed}\n</tools>\nTo call one, answer with\n<tool_call>\n"
        '{"name": <function name>, "arguments": <arguments as JSON>}\n</tool_call>'
    )


def with_logprobs(sampling: Any) -> Any:
    """A sampling that tells at least the sampled token's logprob."""
    return structs.replace(sampling, logprobs=max(0, sampling.logprobs))
