"""From bytes to a checked body: forgiving where the field is forgiving, and what was passed over is told.

Unknown fields are ignored at any depth and named; nulls are absent. What is wrong is told by its whole path, in words.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, model_validator
from starlette.requests import Request

from hetero.errors import RequestError

_log = logging.getLogger("hetero.gateway")
_MOST_PARTS = 100_000  # lists, objects and fields, in a body
_DEEPEST = 200
_MOST_NAMED = 16  # ignored fields that are told
_MOST_KNOWN = 1024  # of those in the log, each once
_known: set[str] = set()


class Body(BaseModel):
    """Base of everything a client may send."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, serialize_by_alias=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {key: value for key, value in body.items() if value is not None}


_Asked = TypeVar("_Asked", bound=Body)


async def parsed(request: Request, most: int) -> dict[str, Any]:
    """The JSON object a request brings, whatever its content type says; gzip is undone, to ``most`` bytes."""
    data = await request.body()
    data = expanded(data, request.headers.get("content-encoding", "identity"), most)
    try:
        body = msgspec.json.decode(data or b"{}")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    _check_parts(body)
    return body


def checked(body: dict[str, Any], kind: type[_Asked], strict: bool = False) -> tuple[_Asked, list[str]]:
    """The body as ``kind`` has it, and the paths of the fields that were ignored; ``strict``: none may be, and types
    and values are those of the documentation. Raises RequestError."""
    try:
        found = kind.model_validate(body, strict=strict, context={"strict": strict})
    except ValidationError as error:
        raise _in_words(error) from None
    ignored = list(_taken_out(found, ""))
    if strict and ignored:
        raise RequestError(f"{ignored[0]}: this field is not supported", ignored[0].partition(".")[0])
    for path in ignored:
        if len(_known) < _MOST_KNOWN and (name := _shown(path)) not in _known:
            _known.add(name)
            _log.warning("ignored the field %s of a request (this line comes once)", name)
    return found, ignored


def named(ignored: list[str]) -> str:
    """Ignored fields as a header's value."""
    more = ["..."] if len(ignored) > _MOST_NAMED else []
    return ", ".join([*(_shown(path) for path in ignored[:_MOST_NAMED]), *more])


def _shown(path: str) -> str:
    """A path as the log and headers may hold it: list indices as one, printable, short."""
    kept = ".".join("N" if part.isdecimal() else part for part in path.split("."))
    return printable(kept, 80).replace(",", "?").replace(";", "?") or "?"


def printable(text: str, most: int = 200) -> str:
    """A text, or its beginning, as headers may hold it."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:most]).strip()


def meaning_none(*values: Any) -> BeforeValidator:
    """For a field in which any of these values means that nothing special is wanted."""

    def look(value: Any, info: ValidationInfo) -> Any:
        strict = bool(info.context and info.context.get("strict"))
        same = any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values)
        return None if same and not strict else value

    return BeforeValidator(look)


def _taken_out(body: BaseModel, path: str) -> Iterator[str]:
    """The paths of unknown fields, which are removed."""
    if body.__pydantic_extra__:
        yield from (path + key for key in body.__pydantic_extra__)
        body.__pydantic_extra__.clear()
    for name in body.model_fields_set:
        value = getattr(body, name, None)
        for n, each in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(each, BaseModel):
                yield from _taken_out(each, f"{path}{name}.{n}." if isinstance(value, list) else f"{path}{name}.")


def _check_parts(body: dict[str, Any]) -> None:
    """Raise RequestError for a body of so many parts that looking at each would take seconds, or nested so deeply that
    others could not write it again."""
    count, left = 0, [(body, 0)]
    while left:
        part, depth = left.pop()
        if depth > _DEEPEST:
            raise RequestError(f"the body is nested more than {_DEEPEST} lists and objects deep")
        count += len(part) if isinstance(part, dict) else 0
        for each in part.values() if isinstance(part, dict) else part:
            if count > _MOST_PARTS:
                raise RequestError(f"the body has more than {_MOST_PARTS} lists, objects and fields")
            if type(each) in (dict, list):
                count += 1
                left.append((each, depth + 1))


def expanded(data: bytes, coding: str, most: int) -> bytes:
    """A body as it was before its content coding, to ``most`` bytes. Raises RequestError."""
    coding = coding.lower()
    if coding in ("", "identity"):
        return data
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise RequestError(f"content-encoding: {coding:.40} is not supported: send gzip, or none", status=415)
    expander = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        found = expander.decompress(data, most + 1)
    except zlib.error as error:
        raise RequestError(f"content-encoding: the body is not {coding}: {error}") from None
    if len(found) > most or expander.unconsumed_tail:
        raise RequestError(f"the body exceeds {most / 2**20:g} MiB (--max-body)", status=413)
    if not expander.eof:
        raise RequestError(f"content-encoding: the body is not all of a {coding} stream")
    return found


# What pydantic calls a mistake -> what a person would.
_WORDS = {
    "missing": "is missing",
    "string_type": "must be text",
    "string_unicode": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_long": "has more than {max_length} entries",
    "string_too_long": "has more than {max_length} characters",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "literal_error": "must be {expected}",
}


_KINDS = re.compile(r".*[\[-].*|str|int|float|bool")  # what pydantic adds to a path, of unions


def _in_words(error: ValidationError) -> RequestError:
    """The first mistake, by its path. Values are never echoed."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(part) for part in first["loc"] if not _KINDS.fullmatch(str(part)))
    kind = first["type"]
    if kind == "value_error":
        words = str(first["ctx"]["error"])
    elif kind.startswith("int_"):
        words = "must be a whole number"
    elif kind.startswith("float_"):
        words = "must be a number"
    else:
        words = _WORDS.get(kind, "is not valid").format(**first.get("ctx", {}))
    joint = ": " if kind == "value_error" else " "
    return RequestError(f"{path}{joint}{words}" if path else words, str(first["loc"][0]) if first["loc"] else None)
