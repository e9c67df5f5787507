"""What models would cost on this machine's cores, from bytes, operations and what the cores were measured to do: no
weights are loaded."""

from __future__ import annotations

from hetero.cluster.devices import measure_bandwidth
from hetero.placement.memory import kv_bytes
from hetero.placement.profile import Speed, estimate
from hetero.planning.plan import Placement
from hetero.workers.engines.octet.library import library, path, why_not
from hetero.workers.engines.registry import find_engine
from hetero.workers.runtime.trial import Company, Trial

_STEPS = 1_000_000  # of the loop that measures operations
_LOOK = 2e-4  # seconds of a row that is sampled
_OVERHEAD = 3e-4  # seconds of a forward of nothing


class Estimates:
    """Of roles on CPUs; takes the place of ``Profiles``."""

    def __init__(self, threads: int) -> None:
        """``threads``: those a team may have at most."""
        lib, self._rate = library(), 0.0
        if lib is not None and why_not() is None:
            self._rate = max(lib.octet_arithmetic(path()[0], 1, _STEPS) for _ in range(3))
        found, one = measure_bandwidth(threads), measure_bandwidth(1)
        self._most = found.alone if found is not None else 0.0
        self._one = one.alone if one is not None else 0.0

    def of(self, placement: Placement, other: Placement | None = None, company: Company = "") -> Trial | None:
        """None for GPUs, and where the kernel that measures is not built."""
        if not placement.device.is_cpu or not self._rate:
            return None
        spec, shape, count = placement.spec, placement.model.shape, max(1, len(placement.spec.cores))
        width = find_engine(spec.engine).kv_width(spec.dtype, spec.kv_cache)
        bandwidth = min(self._most, count * self._one) / (2 if company == "beside" else 1)
        speed = Speed(bandwidth, count * self._rate, _OVERHEAD)
        # The embedding is looked up, not multiplied.
        weights = shape.parameters - shape.vocabulary * placement.model.metadata.width
        found = estimate(placement.memory.weights, weights, kv_bytes(shape, width), speed)
        return Trial(dict(found.forward), _LOOK, found.prefill, memory=placement.memory.total, deeper=found.deeper)
