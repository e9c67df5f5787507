"""A plan at work: who does what where, and how fast it turned out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from hetero.planning.plan import Placement, Plan
from hetero.workers.runtime.status import WorkerStatus


def running(plan: Plan, placements: Sequence[Placement], statuses: Mapping[str, WorkerStatus]) -> dict[str, object]:
    """For programs: bytes, seconds, tokens a second. ``placements``: where the roles are now; ``foreseen``: the plans
    this one was chosen from, where it was."""
    roles = []
    for placement in placements:
        spec, status = placement.spec, statuses.get(placement.spec.role)
        roles.append(
            {
                "role": spec.role,
                "device": str(placement.device),
                "engine": spec.engine,
                "model": placement.model.name,
                "memory_planned": placement.memory.total,
                "memory": status.memory if status is not None else None,
                "loaded_s": status.loaded_s if status is not None else None,
            }
        )
    target = statuses.get("target")
    return {
        "strategy": plan.strategy,
        "gamma": plan.target.spec.gamma,
        "context": plan.context,
        "parallel": plan.target.spec.sequences,
        "roles": roles,
        "measured": msgspec.to_builtins(target.speeds) if target is not None and target.speeds is not None else None,
        "drafters": msgspec.to_builtins(target.drafters) if target is not None else [],
        "foreseen": list(plan.foreseen),
    }
