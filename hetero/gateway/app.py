"""The application: all routes, behind the door."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp

from hetero.gateway.answers.errors import answer_errors
from hetero.gateway.door.guard import Guard
from hetero.gateway.door.manners import Manners
from hetero.gateway.routes import anthropic, llama_server, models, ollama, openai, responses
from hetero.gateway.routes.documents import document
from hetero.gateway.state import GatewayOptions, GatewayState

_ROUTES = (models, openai, responses, anthropic, llama_server, ollama)


def make_app(state: GatewayState, door: bool = True) -> FastAPI:
    """The gateway's application; ``door``: behind one of its own."""
    app = FastAPI(title="hetero", docs_url=None, redoc_url=None, redirect_slashes=False)
    options = state.options
    if door:
        app.add_middleware(Guard, keys=options.keys, limits=options.limits, origins=options.origins)
        app.add_middleware(Manners, origins=options.origins)  # the outermost
    answer_errors(app)
    for room in _ROUTES:
        app.include_router(room.routes(state))
    document(app)
    return app


def behind_door(app: ASGIApp, options: GatewayOptions) -> ASGIApp:
    """An application, or several, behind the one door."""
    return Manners(Guard(app, options.keys, options.limits, options.origins), options.origins)
