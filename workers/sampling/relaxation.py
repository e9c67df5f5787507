"""Schemas the grammar library cannot do as they are: keyword by keyword less strict, until it can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

# What may go, one after another: first what is told most often, at last what leaves of a schema only its types.
_KEYWORDS = (
    ("format",), ("pattern",), ("propertyNames",), ("uniqueItems",), ("patternProperties",), ("not",),
    ("contains", "minContains", "maxContains"), ("if", "then", "else"), ("dependentRequired", "dependentSchemas",
    "dependencies"), ("unevaluatedProperties", "unevaluatedItems"), ("minProperties", "maxProperties"),
    ("multipleOf",), ("minLength", "maxLength"), ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    ("minItems", "maxItems"), ("additionalItems", "prefixItems"), ("oneOf",), ("allOf",), ("anyOf",), ("$ref",),
)  # fmt: skip
_INNER = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_DEEPEST = 64


def relaxed(schema: Any, objection: Callable[[Any], str | None]) -> tuple[Any, list[str]] | None:
    """A schema that cannot be used without what stands in the way, and the keywords that were dropped; None where
    nothing helps. ``oneOf`` becomes ``anyOf`` first: what is right for one is right for that."""
    one = _without(schema, frozenset(), True, 0)
    if one != schema and objection(one) is None:
        return one, ["oneOf"]
    present = set(_words(schema, 0))
    groups = [group for group in _KEYWORDS if present & set(group)]
    dropped: frozenset[str] = frozenset()
    for group in groups:  # one kind alone, if that is enough
        found = _without(schema, frozenset(group), True, 0)
        if objection(found) is None:
            dropped = frozenset(group)
            break
    else:
        for group in groups:
            dropped |= frozenset(group)
            found = _without(schema, dropped, True, 0)
            if objection(found) is None:
                break
        else:
            return None
    changed = {"oneOf"} if "oneOf" in present else set()
    return found, sorted((dropped & present) | changed)


def _without(schema: Any, words: frozenset[str], any_of: bool, depth: int) -> Any:
    """A schema without some keywords; ``any_of``: for oneOf anyOf."""
    if depth > _DEEPEST or not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in words:
            continue
        name = "anyOf" if any_of and key == "oneOf" and "anyOf" not in schema else key
        if key in _INNER and isinstance(value, dict):
            found[name] = {k: _without(v, words, any_of, depth + 1) for k, v in value.items()}
        elif key in _LISTS and isinstance(value, list):
            found[name] = [_without(v, words, any_of, depth + 1) for v in value]
        elif key in ("items", "additionalProperties", "not", "contains", "if", "then", "else", "propertyNames"):
            found[name] = _without(value, words, any_of, depth + 1)
        else:
            found[name] = value
    return found


def _words(schema: Any, depth: int) -> Iterator[str]:
    """The keywords of a schema, at any depth."""
    if depth > _DEEPEST or not isinstance(schema, dict):
        return
    yield from schema
    for key, value in schema.items():
        inner = (
            value.values()
            if key in _INNER and isinstance(value, dict)
            else value
            if isinstance(value, list)
            else [value]
        )
        for each in inner:
            yield from _words(each, depth + 1)
