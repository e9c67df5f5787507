"""A chat, of whichever dialect: messages to a prompt, tools and schemas to a grammar, and how its answer is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hetero.errors import RequestError
from hetero.gateway.answers.answer import Answer, Dialect
from hetero.gateway.answers.choice import Choice
from hetero.gateway.chat.constraints import Relaxed, answer_grammar
from hetero.gateway.chat.formats import Format
from hetero.gateway.chat.lark import text_parameters
from hetero.gateway.chat.messages import fold, shapes
from hetero.gateway.chat.reader import reader
from hetero.gateway.chat.thinking import thinking_of
from hetero.gateway.requests.fields import predicted
from hetero.gateway.requests.openai import ChatRequest, CompletionRequest
from hetero.gateway.requests.tools import Function
from hetero.gateway.routes.generation import Asked, check_model, check_prompt, check_tokens, encode, told
from hetero.gateway.state import GatewayState
from hetero.gateway.verifiers.sequences import ask


@dataclass
class Prompt:
    """A chat as the model is given it. ``opened``: it ends within reasoning; ``go_on``: within an answer's text."""

    text: str
    tokens: list[int]
    form: Format
    opened: bool
    go_on: bool


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
    relaxed = Relaxed()
    grammar = await answer_grammar(state.probe, body, form, relaxed)
    budget = body.budget
    thinking = None
    if (grammar or budget is not None) and not prompt.go_on:
        thinking = thinking_of(form, prompt.opened, budget, lambda text: state.tokenizer.encode(text, False))
    samplings = body.samplings(state.options.defaults, body.n)
    vocabulary = state.tokenizer.vocabulary
    own = {"grammar": grammar, "shown": list(form.tokens.values()), "thinking": thinking}
    more = {**await opening_fields(state, body), **own}
    openings = [ask(prompt.tokens, sampling, body.limit or state.context, body.stop, **more) for sampling in samplings]
    texts = {tool.name: text_parameters(tool) for tool in tools} if tools else None
    read = [reader(form, opened=prompt.opened, tools=texts, go_on=prompt.go_on) for _ in range(body.n)]
    choices = [Choice(n, vocabulary, each) for n, each in enumerate(read)]
    answer = Answer(state.name, choices, [len(prompt.tokens)], state.fingerprint)
    return Asked(answer, openings, dialect, body.stream, headers | relaxed.headers)


async def opening_fields(state: GatewayState, body: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """What of any request the verifier is told."""
    prediction = predicted(body.prediction)
    return {
        "prediction": (await encode(state, prediction, "prediction", False))[: state.context] if prediction else [],
        "plain": not body.speculation,
        "stop_ids": body.stop_token_ids,
        "ignore_end": body.ignore_eos,
        "special": not body.skip_special_tokens,
    }


def _dumped(tool: Function) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude_none=True)}


def _instructions(tools: list[Function]) -> str:
    """What a model is told whose chat template does not speak of tools."""
    listed = "\n".join(json.dumps(_dumped(tool), ensure_ascii=False) for tool in tools)
    return (
        f"You may call these functions:\n<tools>\n{listed}\n</tools>\nTo call one, answer with\n<tool_call>\n"
        '{"name": <function name>, "arguments": <arguments as JSON>}\n</tool_call>'
    )
