"""What stands beside a drafter: how it came to be, how good it is, whose licence it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hetero.distill.examination import Marks
from hetero.workers.models.gguf_header import read_header


@dataclass(frozen=True)
class Card:
    """``target``: its name; ``licence`` "": it names none; ``facts``: settings and figures, in order."""

    target: str
    licence: str
    command: str
    marks: Marks
    facts: Sequence[tuple[str, str]]

    def text(self) -> str:
        """As Markdown, with the front matter that model hubs read."""
        licence = self.licence or "unknown"
        agreed = "\n".join(f"| {t:g} | {share:.3f} |" for t, share in sorted(self.marks.agreement.items()))
        facts = "\n".join(f"- {name}: {value}" for name, value in self.facts)
        shares = ", ".join(f"{share:.3f}" for share in self.marks.later)
        later = f" Further tokens of a draft, at both: {shares}." if shares else ""
        return f"""---
license: {licence}
base_model: {self.target}
library_name: hetero
---

# A drafter of {self.target}

It guesses what {self.target} says, for speculative decoding; by itself it answers badly. Its weights began as the
target's, and it learned from nothing else but what the target wrote: the target's licence ({licence}) is its own.

Made by `{self.command}`.

| temperature | says what the target says |
|---|---|
{agreed}

Of {self.marks.positions} positions of the target's answers to prompts that were kept apart; above 0 with the noise that
couples the two (README of hetero).{later}

{facts}
"""


def licence_of(target: Path) -> str:
    """What a GGUF file calls its licence; "" where it does not."""
    return str(read_header(target).get("general.license", ""))[:80]
