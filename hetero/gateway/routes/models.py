"""What is served, and how it is: models, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from hetero.errors import RequestError
from hetero.gateway.answers.errors import unavailable
from hetero.gateway.metrics import CONTENT_TYPE
from hetero.gateway.state import Card, GatewayState

_PAGE = Path(__file__).parent.parent / "page"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"


def routes(state: GatewayState) -> APIRouter:
    """Them."""
    router = APIRouter()
    created = int(time.time())
    files = {path.name: path for path in _PAGE.iterdir() if path.suffix in _TYPES}

    @router.get("/health")
    async def health(request: Request) -> Response:
        trouble = state.trouble()
        return JSONResponse({"status": "ok"}) if trouble is None else unavailable(request.url.path, trouble)

    @router.get("/ping", include_in_schema=False)
    async def ping(request: Request) -> Response:
        return await health(request)

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file("index.html")

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _file("docs.html")

    @router.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        return _file(name)

    def _file(name: str) -> Response:
        path = files.get(name)
        if path is None:
            raise RequestError(f"the page has no file {name:.100}", status=404)
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers=headers)

    @router.get("/plan")
    async def plan() -> dict[str, Any]:
        return await asyncio.to_thread(state.plan)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(await asyncio.to_thread(state.metrics.text), media_type=CONTENT_TYPE)

    @router.get("/models", include_in_schema=False)
    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(card, created) for card in state.cards]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        found = next((card for card in state.cards if name in ("", card.name)), None)
        if found is None:
            served = ", ".join(card.name for card in state.cards)
            raise RequestError(
                f"model {name:.100} is not served here: {served:.300} is", "model", 404, "model_not_found"
            )
        return _model(found, created)

    return router


def _model(card: Card, created: int) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": created,
        "owned_by": "hetero",
        "max_model_len": card.context,
    }
