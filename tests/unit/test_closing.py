"""Objects that name their properties get no others; what mixes parts of schemas is left as it is."""

import pytest

from hetero.workers.sampling.closing import closed

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SHUT = CITY | {"additionalProperties": False}


@pytest.mark.parametrize(
    "schema,wanted",
    [
        (CITY, SHUT),
        ({"type": "object", "properties": {}}, {"type": "object", "properties": {}, "additionalProperties": False}),
        ({"type": "array", "items": CITY}, {"type": "array", "items": SHUT}),
        ({"anyOf": [CITY, {"type": "null"}]}, {"anyOf": [SHUT, {"type": "null"}]}),
        ({"$defs": {"c": CITY}, "$ref": "#/$defs/c"}, {"$defs": {"c": SHUT}, "$ref": "#/$defs/c"}),
        (
            {"type": "object", "properties": {"properties": CITY}},  # one that is called so
            {"type": "object", "properties": {"properties": SHUT}, "additionalProperties": False},
        ),
    ],
)
def test_what_is_closed(schema, wanted):
    before = repr(schema)
    assert closed(schema) == wanted and repr(schema) == before


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        CITY | {"additionalProperties": True},
        CITY | {"additionalProperties": {"type": "integer"}},
        CITY | {"patternProperties": {"^x-": {}}},
        CITY | {"anyOf": [{"required": ["other"]}]},
        CITY | {"required": ["city", "unnamed"]},
        CITY | {"minProperties": 3},
        {"allOf": [CITY, {"type": "object", "properties": {"country": {"type": "string"}}}]},
        {"type": "object", "properties": {"a": {"not": CITY}}},
        {"type": "object", "properties": {"a": {}}, "anyOf": [CITY, {"type": "object", "properties": {"b": {}}}]},
        {"$defs": {"c": CITY}, "$ref": "#/$defs/c", "properties": {"y": {}}},
        {"type": "object", "properties": {"p": {"$defs": {"c": CITY}, "$ref": "#/$defs/c", "required": ["a"]}}},
        True,
        {"type": "array", "items": True},
        {"properties": 1, "required": 2, "items": [3]},
        {"type": "object", "properties": {"a": {}}, "required": [[]]},
    ],
)
def test_what_stays_open(schema):
    assert closed(schema) == schema
