"""docs/benchmarks.md, from the figures that were measured: a JSON file each, and what is to be said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hetero.bench.report import shown
from hetero.errors import ConfigError


def page(folder: Path) -> str:
    """The page of a folder: ``README.md`` opens it; each ``NAME.json`` becomes a table, ``NAME.md`` in front of it.

    Raises ConfigError for files that are no reports.
    """
    parts = [(folder / "README.md").read_text().strip()]
    for file in sorted(folder.glob("*.json")):
        try:
            found: dict[str, Any] = json.loads(file.read_text())
            table = _table(found["rows"])
            title, machine = found["benchmark"], found["machine"]
            command, version, day = found["command"], found["version"], found["date"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigError(f"{file}: not the figures of a benchmark ({error!r})") from None
        notes = file.with_suffix(".md")
        said = [notes.read_text().strip()] if notes.is_file() else []
        where = f"`{command} --json {file.name}`, hetero {version}, {day}, {machine}."
        parts += [f"## {title[0].upper()}{title[1:]}", *said, where, table]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(rows[0])
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(shown(row[column]) for column in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
