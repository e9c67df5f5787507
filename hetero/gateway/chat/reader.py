"""Reads an answer as it grows: what of it is reasoning, what is text, what are calls. The pieces it comes in do not
matter.

A call is shown as it is written: its name first, then its arguments. One that breaks off stays what was shown of it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hetero.gateway.chat.calls import CallReader, JsonCall, begun
from hetero.gateway.chat.formats import HARMONY, Format

_LONGEST_HEADER = 256  # characters of one of harmony's
_PYTHON = "<|python_tag|>"


@dataclass(frozen=True)
class Piece:
    """Something new: ``kind`` says of what. A "call" begins number ``call`` and names its function."""

    kind: Literal["text", "reasoning", "call", "arguments"]
    text: str
    call: int = -1
    id: str = ""


class AnswerReader:
    """Of one answer."""

    def __init__(self, form: Format, opened: bool, tools: Mapping[str, frozenset[str]] | None, go_on: bool) -> None:
        """``opened``: it begins within reasoning; ``tools``: the functions whose calls are read, and which of their
        parameters are texts; ``go_on``: it goes on with a text."""
        self.calls = 0
        self._think = form.think
        self._tools = form.calls if tools is not None else None
        self._texts = tools or {}
        self._held = ""
        self._state: Literal["fresh", "reasoning", "text", "call"] = "reasoning" if opened else "fresh"
        if go_on or form.harmony:
            self._state = "text"
        self._trim = opened  # line ends at the beginning of what follows are not shown
        self._gap = ""  # white space that is shown if more follows
        self._call: CallReader | None = None

    def feed(self, text: str) -> list[Piece]:
        """Take more of the answer."""
        self._held += text
        found: list[Piece] = []
        while self._step(found, False):
            pass
        return _merged(found)

    def finish(self) -> list[Piece]:
        """The answer is over: what was held back."""
        found: list[Piece] = []
        while self._step(found, True):
            pass
        return _merged(found)

    def _step(self, found: list[Piece], last: bool) -> bool:
        """Do something with what is held; whether there may be more to do."""
        match self._state:
            case "fresh":
                return self._fresh(last)
            case "reasoning":
                return self._reasoning(found, last)
            case "text":
                return self._text(found, last)
        return self._in_call(found, last)

    def _fresh(self, last: bool) -> bool:
        """Nothing was said yet: reasoning may begin, or a call that has no marker."""
        start = self._held.lstrip()
        begin = self._think[0] if self._think is not None else ""
        if begin and start.startswith(begin):
            self._held, self._state, self._trim = start[len(begin) :], "reasoning", True
            return True
        bare = self._tools is not None and self._tools.style == "bare"
        awaited = [begin] * bool(begin) + ["{", _PYTHON] * bare
        if not last and any(marker != start and marker.startswith(start) for marker in awaited):
            return False
        self._state = "text"
        if self._tools is not None and bare and start.startswith(("{", _PYTHON)):
            self._held, self._state = start.removeprefix(_PYTHON), "call"
            self._call = JsonCall(self._tools)
        return True

    def _reasoning(self, found: list[Piece], last: bool) -> bool:
        assert self._think is not None
        shown, ended = self._until((self._think[1],), last)
        self._show(found, "reasoning", shown)
        if ended is None:
            return False
        self._state, self._trim, self._gap = "text", True, ""
        if self._tools is not None and self._tools.style == "bare":
            self._state, self._think = "fresh", None
        return True

    def _text(self, found: list[Piece], last: bool) -> bool:
        begin = self._tools.begin if self._tools is not None else ""
        if not begin:
            shown, self._held = self._held, ""
            self._show(found, "text", shown)
            return False
        assert self._tools is not None
        shown, mark = self._until((begin,), last)
        self._show(found, "text", shown)
        if mark is None:
            return False
        self._call, self._state = begun(self._tools, self._texts), "call"
        return True

    def _in_call(self, found: list[Piece], last: bool) -> bool:
        assert self._call is not None
        call = self._call
        name, arguments, self._held = call.feed(self._held, last)
        if name is not None:
            found.append(Piece("call", name, self.calls, f"call_{secrets.token_hex(12)}"))
            self.calls += 1
        if arguments:
            found.append(Piece("arguments", arguments, self.calls - 1))
        if call.failed:
            self._trim = False
            self._show(found, "text", call.begin + call.taken)
            self._state = "text"
        elif call.ended:
            self._trim, self._gap = True, ""
            following = call.following()
            self._state = "call" if following is not None else "text"
            self._call = following
        return bool(self._held) and (call.failed or call.ended)

    def _until(self, markers: Sequence[str], last: bool) -> tuple[str, str | None]:
        """What is held up to the first marker, and that; without one, what can be none."""
        ends = [(at, marker) for marker in markers if (at := self._held.find(marker)) >= 0]
        if ends:
            at, marker = min(ends)
            shown, self._held = self._held[:at], self._held[at + len(marker) :]
            return shown, marker
        keep = 0
        if not last:
            longest = max(map(len, markers)) - 1
            sizes = range(min(longest, len(self._held)), 0, -1)
            keep = next((n for n in sizes if any(m.startswith(self._held[-n:]) for m in markers)), 0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown, None

    def _show(self, found: list[Piece], kind: Literal["text", "reasoning"], text: str) -> None:
        """Reasoning, and what follows it or a call, without the empty lines between."""
        if self._trim:
            text = text.lstrip("\n")
            self._trim = not text
        text = self._gap + text
        self._gap = ""
        if kind == "reasoning":
            kept = text.rstrip("\n")
            self._gap, text = text[len(kept) :], kept
        if text:
            found.append(Piece(kind, text))


def _merged(found: list[Piece]) -> list[Piece]:
    """Neighbours of one kind as one."""
    merged: list[Piece] = []
    for piece in found:
        last = merged[-1] if merged else None
        if last is not None and last.kind == piece.kind != "call" and last.call == piece.call:
            merged[-1] = Piece(piece.kind, last.text + piece.text, piece.call)
        else:
            merged.append(piece)
    return merged


class HarmonyReader(AnswerReader):
    """gpt-oss: ``<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...``."""

    def __init__(self, form: Format, opened: bool, tools: Mapping[str, frozenset[str]] | None, go_on: bool) -> None:
        super().__init__(form, opened, tools, go_on)
        self._header: str | None = None if go_on else ""  # of a message; None: within one
        self._kind: Literal["text", "reasoning", "arguments"] = "text"

    def _step(self, found: list[Piece], last: bool) -> bool:
        if self._header is not None:
            shown, mark = self._until(("<|message|>",), last)
            self._header += shown
            if mark is None:
                plain = bool(self._header) and not self._header.startswith(HARMONY)
                if plain and (last or len(self._header) > _LONGEST_HEADER):  # a text without a header
                    found.append(Piece("text", self._header))
                    self._header, self._kind = None, "text"
                return False
            self._enter(found, self._header)
            self._header = None
            return True
        shown, mark = self._until(HARMONY, last)
        if shown:
            at = self.calls - 1 if self._kind == "arguments" else -1
            found.append(Piece(self._kind, shown, at))
        if mark is None:
            return False
        self._header = mark if mark != "<|end|>" else ""
        return True

    def _enter(self, found: list[Piece], header: str) -> None:
        to = re.search(r"to=functions\.([\w.\-/]{1,256})", header)
        if to is not None:
            self._kind = "arguments"
            found.append(Piece("call", to[1], self.calls, f"call_{secrets.token_hex(12)}"))
            self.calls += 1
        else:
            self._kind = "reasoning" if "analysis" in header else "text"


def reader(
    form: Format, *, opened: bool = False, tools: Mapping[str, frozenset[str]] | None = None, go_on: bool = False
) -> AnswerReader:
    """A reader of answers of this format (see ``AnswerReader``)."""
    return (HarmonyReader if form.harmony else AnswerReader)(form, opened, tools, go_on)
