"""llama-server's own routes, and vLLM's of the same names."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from hetero import __version__
from hetero.errors import RequestError
from hetero.gateway.answers.llama_server import LlamaServer
from hetero.gateway.requests.openai import ChatRequest, CompletionRequest
from hetero.gateway.requests.reading import Body, checked, parsed
from hetero.gateway.routes.chats import prompt_of
from hetero.gateway.routes.documents import takes
from hetero.gateway.routes.generation import encode, read, respond
from hetero.gateway.routes.ollama import no_embeddings
from hetero.gateway.routes.openai import completion
from hetero.gateway.state import GatewayState
from hetero.workers.wire.messages import MAX_TOKENS

# llama-server's names of fields, by ours.
_NAMES = {"n_predict": "max_tokens", "n_probs": "logprobs", "max_tokens": "max_tokens"}


class TokenizeRequest(Body):
    """POST /tokenize: ``content`` as with llama-server, ``prompt`` or ``messages`` as with vLLM."""

    content: str | None = None
    add_special: bool = False
    with_pieces: bool = False
    prompt: str | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Body):
    """POST /detokenize."""

    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(fail_fast=True, max_length=MAX_TOKENS)]


def routes(state: GatewayState) -> APIRouter:
    """Them."""
    router = APIRouter()
    pieces = state.tokenizer.vocabulary.pieces

    @router.post("/completion", openapi_extra=takes(CompletionRequest))
    async def complete(request: Request) -> Response:
        body = await parsed(request, state.options.limits.body)
        renamed = {_NAMES.get(key, key): value for key, value in body.items()}
        renamed["max_tokens"] = -1 if (most := renamed.get("max_tokens")) in (None, -1, -2) else most
        if not renamed.get("logprobs"):
            renamed.pop("logprobs", None)
        found, ignored = checked(renamed, CompletionRequest, state.options.strict)
        if len(found.prompt) > 1 or found.n > 1:
            raise RequestError("prompt: one at a time: /v1/completions takes several", "prompt")
        return await respond(state, request, await completion(state, found, ignored, LlamaServer(found)))

    @router.post("/tokenize", openapi_extra=takes(TokenizeRequest))
    async def tokenize(request: Request) -> dict[str, Any]:
        body = await parsed(request, state.options.limits.body)
        if "messages" in body:
            chat, _ = checked(body, ChatRequest, state.options.strict)
            tokens = (await prompt_of(state, chat)).tokens
            return {"tokens": tokens, "count": len(tokens), "max_model_len": state.context}
        asked, _ = checked(body, TokenizeRequest, state.options.strict)
        if asked.prompt is not None:
            tokens = await encode(state, asked.prompt, "prompt", asked.add_special_tokens)
            return {"tokens": tokens, "count": len(tokens), "max_model_len": state.context}
        tokens = await encode(state, asked.content or "", "content", asked.add_special)
        if asked.with_pieces:
            return {"tokens": [{"id": token, "piece": _piece(pieces[token])} for token in tokens]}
        return {"tokens": tokens}

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        tokenizer = state.tokenizer
        marks = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.eos}
        return {**marks, "chat_template": state.template.source(False)}

    @router.post("/detokenize", openapi_extra=takes(DetokenizeRequest))
    async def detokenize(request: Request) -> dict[str, Any]:
        body, _ = await read(state, request, DetokenizeRequest)
        if max(body.tokens, default=0) >= len(pieces):
            largest = max(body.tokens)
            raise RequestError(f"tokens: {largest} lies outside the vocabulary of {len(pieces)}", "tokens")
        vocabulary = state.tokenizer.vocabulary
        text = b"".join(vocabulary.named(token) for token in body.tokens).decode(errors="replace")
        return {"content": text, "prompt": text}

    @router.post("/apply-template", openapi_extra=takes(ChatRequest))
    async def apply_template(request: Request) -> dict[str, str]:
        body, _ = await read(state, request, ChatRequest)
        return {"prompt": (await prompt_of(state, body)).text}

    @router.get("/props")
    async def props() -> dict[str, Any]:
        defaults = state.options.defaults
        sampled = {
            "temperature": defaults.temperature,
            "top_k": defaults.top_k,
            "top_p": defaults.top_p,
            "min_p": defaults.min_p,
            "repeat_penalty": defaults.repetition,
        }
        return {
            "default_generation_settings": {"n_ctx": state.context, "params": sampled},
            "total_slots": state.parallel,
            "model_alias": state.name,
            "model_path": state.name,
            "modalities": {"vision": False, "audio": False},
            "chat_template": state.template.source(False),
            "bos_token": state.tokenizer.bos,
            "eos_token": state.tokenizer.eos,
            "build_info": f"hetero {__version__}",
            "drafter": state.drafter,
        }

    @router.get("/slots")
    async def slots() -> Response:
        busy = min(state.verifiers.live, state.parallel)
        shown = [
            {"id": n, "n_ctx": state.context, "is_processing": n < busy, "speculative": state.drafter}
            for n in range(state.parallel)
        ]
        return JSONResponse(shown)

    @router.post("/v1/embeddings")
    @router.post("/embeddings", include_in_schema=False)
    @router.post("/embedding", include_in_schema=False)
    async def embeddings() -> Response:
        raise no_embeddings(state)

    return router


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
