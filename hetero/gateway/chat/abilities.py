"""What chat templates can do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Abilities:
    """What a template was seen to do with small chats. ``system``: it takes a first message of that role, and
    (``anywhere``) later ones; ``tools``, ``calls``, ``results``: they reach the prompt; ``texts``: it wants the
    arguments of calls as text, not as an object; ``nine``: it takes ids of calls only that have nine letters and
    digits; ``repeats``: it takes two messages of one role in a row; ``opens_with_assistant``: a chat may begin with the
    assistant's; ``parts``: contents must be lists of parts."""

    system: bool = True
    anywhere: bool = False
    tools: bool = False
    calls: bool = False
    results: bool = False
    texts: bool = False
    nine: bool = False
    repeats: bool = True
    opens_with_assistant: bool = True
    parts: bool = False
