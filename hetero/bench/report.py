"""How a benchmark ends: a table, the same numbers as JSON, the machine it ran on."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hetero import __version__
from hetero.cluster.inventory import machine_line


def report(name: str, rows: list[dict[str, Any]], json_file: Path | None, console: Console) -> None:
    """Print ``rows`` (one dict a line, keys in order are the columns) and write them to ``json_file``."""
    table = Table(title=f"hetero bench {name}")
    for column in rows[0]:
        table.add_column(column, justify="right" if isinstance(rows[0][column], int | float) else "left")
    for row in rows:
        table.add_row(*[shown(value) for value in row.values()])
    if not console.is_terminal:
        console.width = max(console.width, 140)
    console.print(table)
    machine = machine_line()
    console.print(f"hetero {__version__} on {machine}", highlight=False)
    if json_file is not None:
        found = {
            "benchmark": name,
            "command": _command(),
            "version": __version__,
            "date": date.today().isoformat(),
            "machine": machine,
            "rows": rows,
        }
        json_file.write_text(json.dumps(found, indent=1) + "\n")


def _command() -> str:
    """The command line that made the figures, without where they are written."""
    words = ["hetero", *(word for word in sys.argv[1:] if not word.startswith("--json="))]
    if "--json" in words:
        at = words.index("--json")
        del words[at : at + 2]
    return " ".join(words)


def shown(value: object) -> str:
    """A figure as people read it."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}"
