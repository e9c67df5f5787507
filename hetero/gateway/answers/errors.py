"""Errors as answers, each in the shape that the clients of its route know. Values of a request are never echoed."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from hetero.errors import Busy, RequestError, SequenceFailed

_STATUS = {"invalid_request": 400, "unavailable": 503, "request_timeout": 504}
_ECHO = 2000  # characters of an error
# Anthropic's words, by status.
_ANTHROPIC = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


def failure(message: str, kind: str, param: str | None = None, code: str | int | None = None) -> dict[str, Any]:
    """OpenAI's error object. What a request said is echoed in part at most."""
    if len(message) > _ECHO:
        message = f"{message[:_ECHO]}..."
    return {"error": {"message": message, "type": kind, "param": param and param[:_ECHO], "code": code}}


def kind_of(error: SequenceFailed) -> str:
    """OpenAI's type of error."""
    return "invalid_request_error" if error.code == "invalid_request" else "server_error"


def refusal(
    path: str,
    status: int,
    body: dict[str, Any],
    headers: Mapping[str, str] | None = None,
    details: dict[str, Any] | None = None,
) -> Response:
    """An error for the clients of a route; ``body`` is OpenAI's error object, ``details`` are for Anthropic's."""
    error = body["error"]
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC.get(status, "api_error")
        more = {"details": details} if details else {}
        body = {"type": "error", "error": {"type": kind, "message": error["message"], **more}}
    elif path.startswith("/api/"):
        body = {"error": error["message"]}
    return JSONResponse(body, status, dict(headers or {}))


def unavailable(path: str, message: str) -> Response:
    """A 503 in llama-server's shape."""
    return refusal(path, 503, {"error": {"code": 503, "message": message, "type": "unavailable_error", "param": None}})


def answer_errors(app: FastAPI) -> None:
    """Have every error answered."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        return refusal(request.url.path, 400, failure(f"{where}: not valid", "invalid_request_error"))

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        kind = "invalid_request_error" if error.status < 500 else "not_implemented_error"
        return refusal(
            request.url.path, error.status, failure(str(error), kind, error.param, error.code), None, error.details
        )

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        body = failure(str(error), "rate_limit_error", code="busy")
        return refusal(request.url.path, 429, body, {"Retry-After": str(error.retry)})

    @app.exception_handler(SequenceFailed)
    async def failed(request: Request, error: SequenceFailed) -> Response:
        body = failure(str(error), kind_of(error), code=error.code)
        return refusal(request.url.path, _STATUS.get(error.code, 500), body)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        body = failure("an internal error; the server's log has it", "server_error")
        return refusal(request.url.path, 500, body)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        told = str(error.detail)
        if error.status_code == 404 and told == http.HTTPStatus.NOT_FOUND.phrase:
            told = f"there is no route {request.method} {request.url.path:.200}: /openapi.json lists them"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            told = f"{request.url.path:.200} is not asked with {request.method}, but with {allowed}"
        return refusal(request.url.path, error.status_code, failure(told, "invalid_request_error"), error.headers)
