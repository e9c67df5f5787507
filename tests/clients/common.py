"""A tool and a schema without free strings, which a toy model never ends; and what is asserted of them."""

import json

CITIES = ["Rome", "Oslo"]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": CITIES}, "celsius": {"type": "boolean"}},
    "required": ["city", "celsius"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city", "parameters": SCHEMA},
}
ASKED = "Is it warm in Rome?"
RESULT = '{"degrees": 21}'
PLAIN, FORCED = 24, 200  # tokens of a free answer, of a forced one
ENDS = ("stop", "length")


def check(arguments):
    """That they are arguments of the tool, as text or as an object."""
    found = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert set(found) == {"city", "celsius"} and found["city"] in CITIES and isinstance(found["celsius"], bool), found
    return found
