"""The tables people read: what runs where."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from hetero.plan import Plan


def plan_table(plan: Plan, statuses: dict[str, dict[str, Any]], url: str) -> Table:
    """Device, role, engine, model, memory, strategy, address of all that runs."""
    table = Table()
    for name in ("device", "role", "engine", "model", "memory", "strategy", "address"):
        table.add_column(name, overflow="fold")
    for placement in [plan.target] + ([plan.drafter] if plan.drafter else []):
        spec = placement.spec
        status = statuses[spec.role]
        exact = ", exact" if spec.exact else ""
        strategy = (
            plan.strategy if plan.strategy == "off" else plan.strategy + (f", gamma {spec.gamma}" if spec.gamma else "")
        )
        table.add_row(
            str(placement.device),
            spec.role,
            spec.engine,
            placement.model.name,
            f"{status['memory'] / 2**20:,.0f} MiB",
            strategy + exact,
            status["endpoint"] or "-",
        )
    table.add_row("-", "gateway", "-", plan.name, "-", "-", url)
    return table
