"""OpenAI's Responses API, without a store."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from hetero.errors import RequestError
from hetero.gateway.answers.responses import Responses
from hetero.gateway.requests.responses import ResponsesRequest, as_chat
from hetero.gateway.routes.chats import chat
from hetero.gateway.routes.documents import takes
from hetero.gateway.routes.generation import as_own, read, respond
from hetero.gateway.state import GatewayState


def routes(state: GatewayState) -> APIRouter:
    """Them."""
    router = APIRouter()

    @router.post("/v1/responses", openapi_extra=takes(ResponsesRequest))
    async def responses(request: Request) -> Response:
        body, ignored = await read(state, request, ResponsesRequest)
        made, paths, more = as_chat(body)
        found, ignored = as_own(made, paths, ignored + more)
        return await respond(state, request, await chat(state, found, Responses(body), ignored))

    @router.get("/v1/responses/{name}")
    async def stored(name: str) -> Response:
        raise RequestError("nothing is stored here: an answer is given once", "response_id", 404, "not_found")

    return router
