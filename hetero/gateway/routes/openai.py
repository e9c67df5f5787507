"""OpenAI's routes of completions and chats."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from msgspec import structs

from hetero.errors import RequestError
from hetero.gateway.answers.answer import Answer, Dialect
from hetero.gateway.answers.choice import Choice
from hetero.gateway.answers.openai import Chat, Completion
from hetero.gateway.chat.constraints import Relaxed, constrained
from hetero.gateway.requests.openai import ChatRequest, CompletionRequest
from hetero.gateway.routes.chats import chat, opening_fields
from hetero.gateway.routes.documents import takes
from hetero.gateway.routes.generation import Asked, check_model, check_prompt, check_tokens, encode, read, respond, told
from hetero.gateway.state import GatewayState
from hetero.gateway.verifiers.sequences import ask

_MOST_WEIGHED = 1 << 19  # of a prompt's tokens, and likeliest tokens beside them, whose logprobs are told
_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


def routes(state: GatewayState) -> APIRouter:
    """Them."""
    router = APIRouter()

    @router.post("/completions", include_in_schema=False)
    @router.post("/v1/completions", openapi_extra=takes(CompletionRequest))
    async def completions(request: Request) -> Response:
        body, ignored = await read(state, request, CompletionRequest)
        return await respond(state, request, await completion(state, body, ignored))

    @router.post("/chat/completions", include_in_schema=False)
    @router.post("/v1/chat/completions", openapi_extra=takes(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        body, ignored = await read(state, request, ChatRequest)
        dialect = Chat(body.stream_options if body.stream else None, body.wanted_logprobs >= 0)
        return await respond(state, request, await chat(state, body, dialect, ignored))

    return router


async def completion(
    state: GatewayState, body: CompletionRequest, ignored: list[str], dialect: Dialect | None = None
) -> Asked:
    """What is asked of the verifier; ``dialect``: OpenAI's, if no other. Raises RequestError and Busy."""
    headers = told(ignored) | check_model(state, body.model)
    prompts = [await _tokens_of(state, prompt) for prompt in body.prompt]
    check_prompt(state, prompts, "prompt")
    check_tokens(state, body)
    relaxed = Relaxed()
    grammar = await constrained(state.probe, body, relaxed)
    each = max(body.n, body.best_of or 1)
    samplings = body.samplings(state.options.defaults, each)
    if each > body.n:
        samplings = [structs.replace(sampling, logprobs=max(0, sampling.logprobs)) for sampling in samplings]
    own = {"grammar": grammar, "prompt_logprobs": body.wanted_logprobs if body.echo else -1}
    more = {**await opening_fields(state, body), **own}
    prompt_only = body.max_tokens == 0
    limit = body.max_tokens if body.max_tokens is not None else _COMPLETION_TOKENS
    limit = {0: 1, -1: state.context}.get(limit, limit)
    weighed = sum(map(len, prompts)) * (body.wanted_logprobs + 1) * (each if body.stream else 1)
    if body.echo and weighed > _MOST_WEIGHED:
        why = f"logprobs: with echo {weighed} logprobs are asked for, and {_MOST_WEIGHED} is the most"
        raise RequestError(why, "logprobs")
    openings = []
    choices: list[Choice] = []
    for prompt, asked in zip(prompts, body.prompt, strict=True):
        echo = _text_of(state, asked) if body.echo else ""
        first: Choice | None = None
        for sampling in samplings:
            # What is thought of the prompt is asked once; but a stream cannot wait for another's.
            like = None if body.stream else first
            fields = more if like is None else {**more, "prompt_logprobs": -1}
            openings.append(ask(prompt, sampling, limit, body.stop, **fields))
            choice = Choice(len(choices), state.tokenizer.vocabulary, None, echo, prompt, like)
            choice.silent = prompt_only
            choices.append(choice)
            first = first or choice
    best = body.n if each > body.n else 0
    answer = Answer(state.name, choices, [len(prompt) for prompt in prompts], state.fingerprint, best)
    options = body.stream_options if body.stream else None
    dialect = dialect or Completion(options, body.wanted_logprobs >= 0)
    return Asked(answer, openings, dialect, body.stream, headers | relaxed.headers)


async def _tokens_of(state: GatewayState, asked: str | list[int]) -> list[int]:
    """Tokens of a prompt given as text or as token ids."""
    if isinstance(asked, str):
        return await encode(state, asked, "prompt") or await encode(state, " ", "prompt")
    size = len(state.tokenizer.vocabulary)
    if max(asked) >= size:
        raise RequestError(f"prompt: token id {max(asked)} lies outside the vocabulary of {size}", "prompt")
    return asked


def _text_of(state: GatewayState, asked: str | list[int]) -> str:
    """A prompt as text."""
    if isinstance(asked, str):
        return asked
    return b"".join(state.tokenizer.vocabulary.pieces[token] for token in asked).decode(errors="replace")
