"""Reads calls of functions as they are written: the name first, then what is new of the arguments.

Written as they should be they are shown as they grow; JSON in another order is read at its end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from hetero.gateway.chat.formats import CallFormat

_LONGEST_HEAD = 4096  # characters before a call's arguments
_LONGEST_ODD = 1 << 20  # characters of a call that is read at its end only


class CallReader:
    """One call as it is read. ``feed`` takes text and returns the name, once known, what is new of the arguments (JSON
    text), and what lies behind the call. ``ended``: it is complete; ``failed``: it is none, ``taken`` was its text."""

    def __init__(self, form: CallFormat, begin: str) -> None:
        """``begin``: the marker that was read before it."""
        self.form, self.begin = form, begin
        self.ended = self.failed = False
        self.taken = ""

    def feed(self, text: str, last: bool) -> tuple[str | None, str, str]:
        raise NotImplementedError

    def following(self) -> CallReader | None:
        """The call that may follow without a marker."""
        return None


class JsonCall(CallReader):
    """``{"name": ..., "arguments": {...}}``, and what follows up to the end of it."""

    def __init__(self, form: CallFormat, later: bool = False) -> None:
        """``later``: others stood before it, without a marker between them."""
        super().__init__(form, "" if later else form.begin)
        self._later = later
        self._value: _Value | None = None
        self._object = _Value(depth=1)
        self._closed = False  # the list of calls is

    def feed(self, text: str, last: bool) -> tuple[str | None, str, str]:
        self.taken += text
        name, arguments = None, ""
        if self._later and (rest := self.taken.lstrip()).startswith("]"):
            self._closed = self.ended = True
            return None, "", rest[1:]
        if self._value is None:
            start = self.taken.lstrip()
            head = _HEAD.match(start) if len(start) <= _LONGEST_HEAD else None
            if head is None:
                return self._odd(last)
            name, self._value = _name(head[1]), _Value()
            self.taken = start[head.end() :]
        if not self._value.ended:
            arguments, self.taken = self._value.feed(self.taken)
        rest = self._tail() if self._value.ended else ""
        self.ended |= last
        return name, arguments, rest

    def following(self) -> CallReader | None:
        return JsonCall(self.form, True) if self.form.style in ("list", "bare") and not self._closed else None

    def _tail(self) -> str:
        """What lies behind the call, once its end is there."""
        if self.form.end:
            _, end, rest = self.taken.partition(self.form.end)
            self.ended = bool(end)
            return rest
        _, rest = self._object.feed(self.taken)  # it may have an id behind its arguments
        self.taken, self.ended = "", self._object.ended
        return rest

    def _odd(self, last: bool) -> tuple[str | None, str, str]:
        """It is not written as it should be, or not yet: read as a whole, once its end is there."""
        end = self.form.end
        inside, ended, rest = self.taken.partition(end) if end else (self.taken, "", "")
        hopeful = len(self.taken) <= _LONGEST_ODD and (end or _MAYBE.match(self.taken.lstrip()))
        if not (ended or last) and hopeful:
            return None, "", ""
        found = _parsed(inside)
        if found is None and last and (begun := _NAMED.match(self.taken.lstrip())) is not None:
            found = _name(begun[1]), ""  # it broke off before its arguments
        self.failed, self.ended = found is None, found is not None
        self.taken = inside + ended
        return (*(found or (None, "")), rest)


class _Named(CallReader):
    """``name[ARGS]{...}``."""

    _value: _Value | None = None

    def feed(self, text: str, last: bool) -> tuple[str | None, str, str]:
        name = None
        if self._value is None:
            self.taken += text
            head, mark, text = self.taken.partition("[ARGS]")
            if not mark:
                self.failed = last or len(self.taken) > _LONGEST_HEAD
                return None, "", ""
            name, self._value = head.partition("[CALL_ID]")[0].strip(), _Value()
        arguments, rest = self._value.feed(text)
        self.ended = self._value.ended or last
        return name, arguments, rest


class _Xml(CallReader):
    """``<function=name> <parameter=key> value </parameter> ... </function>``. A value is text where the tool's schema
    says so, and shown as it comes; any other is JSON where it reads so."""

    def __init__(self, form: CallFormat, begin: str, texts: Mapping[str, frozenset[str]]) -> None:
        """``texts``: of each function, the parameters that are texts."""
        super().__init__(form, begin)
        self._texts = texts
        self._name: str | None = None
        self._key: str | None = None  # of the value that is under way
        self._count = 0
        self._looked = 0  # characters of it that hold no end

    def feed(self, text: str, last: bool) -> tuple[str | None, str, str]:
        self.taken += text
        name = None
        if self._name is None:
            head = _FUNCTION.match(self.taken.lstrip())
            if head is None:
                self.failed = last or len(self.taken) > _LONGEST_HEAD
                return None, "", ""
            name = self._name = head[1]
            self.taken = self.taken.lstrip()[head.end() :]
        arguments = ""
        while (more := self._step(last)) is not None:
            arguments += more
        if not self.ended:
            self.ended = last
            return name, arguments, ""
        rest, self.taken = self.taken, ""
        return name, arguments, rest

    def _step(self, last: bool) -> str | None:
        """The next piece of the arguments; None: it takes more text."""
        if self.ended:
            return None
        if self._key is not None:
            return self._value(last)
        rest = self.taken.lstrip()
        head = _PARAMETER.match(rest)
        if head is not None and (len(rest) > head.end() or last):
            self._key, self.taken, self._looked = head[1], rest[head.end() :].removeprefix("\n"), 0
            self._count += 1
            quote = '"' if self._is_text else ""
            return f"{', ' if self._count > 1 else '{'}{json.dumps(self._key)}: {quote}"
        _, end, behind = self.taken.partition(self.form.end)
        if not end:
            return None
        self.taken, self.ended = behind, True
        return "}" if self._count else "{}"

    @property
    def _is_text(self) -> bool:
        return self._key in self._texts.get(self._name or "", frozenset())

    def _value(self, last: bool) -> str | None:
        at = self.taken.find(_XML_END, max(0, self._looked - len(_XML_END)))
        if at >= 0:
            value, self.taken = self.taken[:at].removesuffix("\n"), self.taken[at + len(_XML_END) :]
            shown = json.dumps(value, ensure_ascii=False)[1:] if self._is_text else _json_or_text(value)
            self._key = None
            return shown
        if not self._is_text:
            self._looked = len(self.taken)
            return None
        # A line's end before the marker is not shown.
        upto = len(self.taken) if last else max(0, len(self.taken) - len(_XML_END) - 1)
        shown, self.taken = self.taken[:upto], self.taken[upto:]
        self._looked = 0
        if not shown:
            return None
        return json.dumps(shown, ensure_ascii=False)[1:-1]


def begun(form: CallFormat, texts: Mapping[str, frozenset[str]]) -> CallReader:
    """The call behind a marker; ``texts``: of each function, the parameters that are texts."""
    match form.style:
        case "xml":
            return _Xml(form, form.begin, texts)
        case "named":
            return _Named(form, form.begin)
    return JsonCall(form)


def _parsed(text: str) -> tuple[str, str] | None:
    """Name and arguments (JSON text) of a call that is there as a whole."""
    try:
        found = json.loads(text)
        found = found[0] if isinstance(found, list) and len(found) == 1 else found
        name = found["name"]
        arguments = next(found[key] for key in ("arguments", "parameters") if key in found)
    except (ValueError, KeyError, TypeError, RecursionError, StopIteration):
        return None
    if isinstance(arguments, str):  # some write them as JSON in a text
        try:
            arguments = json.loads(arguments, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return None
    if not (isinstance(name, str) and isinstance(arguments, dict)):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


class _Value:
    """A JSON value as it is written: where it ends."""

    def __init__(self, depth: int = 0) -> None:
        """``depth``: how many lists and objects it is within already."""
        self.ended = False
        self._depth = depth
        self._text = self._escaped = self._begun = False

    def feed(self, text: str) -> tuple[str, str]:
        """What of a text belongs to the value, and what lies behind."""
        for at, c in enumerate(text):
            if self._text:
                if self._escaped:
                    self._escaped = False
                elif c == "\\":
                    self._escaped = True
                elif c == '"':
                    self._text = False
                    if not self._depth:
                        return self._end(text, at + 1)
                continue
            if c == '"':
                self._text = self._begun = True
            elif c in "{[":
                self._depth += 1
                self._begun = True
            elif c in "}]":
                if self._depth <= 1:
                    return self._end(text, at + (self._depth == 1))
                self._depth -= 1
            elif not self._depth and (c == "," or (c.isspace() and self._begun)):
                return self._end(text, at)
            elif not c.isspace():
                self._begun = True
        return text, ""

    def _end(self, text: str, at: int) -> tuple[str, str]:
        self.ended = True
        return text[:at], text[at:]


_HEAD = re.compile(r'[\[,;]?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=[{])')
_NAMED = re.compile(r'[\[,;]?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*(,[^{]*)?$')
# What may still become such a head: a beginning of it.
_MAYBE = re.compile(
    r'[\[,;]?\s*(\{\s*("(n(a(m(e("(\s*(:\s*("((?:[^"\\]|\\.)*("\s*(,\s*("[a-z]*("\s*(:\s*)?)?)?)?)?)?)?)?)?)?)?)?)?)?)?)?$'
)
_FUNCTION = re.compile(r"<function=([^>]{1,256})>")
_PARAMETER = re.compile(r"<parameter=([^>]{1,256})>")
_XML_END = "</parameter>"


def _name(quoted: str) -> str:
    try:
        return str(json.loads(quoted))
    except ValueError:
        return quoted[1:-1]


def _json_or_text(text: str) -> str:
    """A parameter of XML as JSON: as it is where it reads so."""
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return json.dumps(found, ensure_ascii=False)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
