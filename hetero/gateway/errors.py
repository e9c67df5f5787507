"""Errors as answers, all in OpenAI's shape."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from hetero.errors import Busy, RequestError, SequenceFailed
from hetero.gateway.responses import failure

_STATUS = {"invalid_request": 400, "unavailable": 503, "request_timeout": 504}


def unavailable(message: str) -> Response:
    """A 503 in llama-server's shape."""
    body = {"error": {"code": 503, "message": message, "type": "unavailable_error", "param": None}}
    return JSONResponse(body, 503)


def kind_of(error: SequenceFailed) -> str:
    """OpenAI's type of error."""
    return "invalid_request_error" if error.code == "invalid_request" else "server_error"


def answer_errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape. Values of a request are never echoed (NaN would break the JSON)."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part != "body"]
        param = where[0] if where else None
        if "json" not in request.headers.get("content-type", "json"):
            message, param = "the body is not JSON: send it with Content-Type: application/json", None
        elif first["type"] == "json_invalid":
            message, param = "the body is not valid JSON", None
        elif first["type"] == "extra_forbidden":
            message = f"{param}: this field, or this value of it, is not supported"
        else:
            message = f"{'.'.join(where) or 'body'}: {first['msg']}"
        return JSONResponse(failure(message, "invalid_request_error", param), 400)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        code = "model_not_found" if error.status == 404 else None
        return JSONResponse(failure(str(error), "invalid_request_error", error.param, code), error.status)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        body = failure(str(error), "rate_limit_error", code="busy")
        return JSONResponse(body, 429, {"Retry-After": str(error.retry)})

    @app.exception_handler(SequenceFailed)
    async def failed(request: Request, error: SequenceFailed) -> Response:
        return JSONResponse(failure(str(error), kind_of(error), code=error.code), _STATUS.get(error.code, 500))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return JSONResponse(failure("an internal error; the server's log has it", "server_error"), 500)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        return JSONResponse(failure(str(error.detail), "invalid_request_error"), error.status_code)
