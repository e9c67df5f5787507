"""What /openapi.json says of bodies: routes read them themselves, and say so here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from hetero import __version__
from hetero.gateway.requests.reading import Body

_TEMPLATE = "#/components/schemas/{model}"
_known: dict[str, type[Body]] = {}


def takes(kind: type[Body]) -> dict[str, Any]:
    """The part of a route's document on its body."""
    _known[kind.__name__] = kind
    schema = {"$ref": _TEMPLATE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def document(app: FastAPI) -> None:
    """Have ``app`` describe the bodies, too."""

    def made() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title="hetero", version=__version__, routes=app.routes)
            schemas = found.setdefault("components", {}).setdefault("schemas", {})
            for name, kind in _known.items():
                own = kind.model_json_schema(ref_template=_TEMPLATE)
                schemas.update(own.pop("$defs", {}))
                schemas[name] = own
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = made  # type: ignore[method-assign]
