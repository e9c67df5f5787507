"""Objects of a schema that name their properties get no others, as where users come from (vLLM, llama.cpp): a function
is not called with arguments it does not have."""

from __future__ import annotations

from typing import Any

# Beside these an object's properties are not all that it may have, or more is the point.
_OPEN = {
    "additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames", "minProperties", "$ref",
    "allOf", "anyOf", "oneOf", "not", "if", "dependentSchemas", "dependencies",
}  # fmt: skip
_MIXING = {
    "allOf",
    "not",
    "if",
    "dependentSchemas",
    "dependencies",
    "$dynamicRef",
}  # what is closed in one part is so in all
_DEEPEST = 64


def closed(schema: Any) -> Any:
    """A schema whose objects have no other properties than it names, where it does not say otherwise; the schema as it
    is where its parts are mixed (``allOf`` and its like), or it is too deep."""
    return schema if _mixes(schema, 0) else _closed(schema)


def _mixes(value: Any, depth: int) -> bool:
    if depth > _DEEPEST:
        return True
    if isinstance(value, dict):
        beside = set(value) & {"$ref", "anyOf", "oneOf"} and set(value) & {"properties", "required"}
        return bool(_MIXING & set(value) or beside) or any(_mixes(inner, depth + 1) for inner in value.values())
    return isinstance(value, list) and any(_mixes(inner, depth + 1) for inner in value)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, dict):
            found[key] = {name: _closed(inner) for name, inner in value.items()}
        elif key in ("anyOf", "oneOf", "prefixItems", "items") and isinstance(value, list):
            found[key] = [_closed(inner) for inner in value]
        elif key in ("items", "additionalProperties"):
            found[key] = _closed(value)
    named, needed = schema.get("properties"), schema.get("required", [])
    known = isinstance(named, dict) and isinstance(needed, list) and all(name in list(named) for name in needed)
    if known and not _OPEN & set(schema):
        found["additionalProperties"] = False
    return found
