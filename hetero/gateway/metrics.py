"""What Prometheus may ask: counts of this gateway, and what the workers tell of themselves when asked."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hetero.gateway.admission import Admission
from hetero.gateway.verifiers.sequences import Delta
from hetero.workers.runtime.status import WorkerStatus
from hetero.workers.wire.messages import Stats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series for the birth of each series tells little


@dataclass(frozen=True)
class Facts:
    """The state around a gateway: each role's status and restarts, and frames the gateway itself dropped."""

    statuses: dict[str, WorkerStatus]
    restarts: dict[str, int]
    dropped: int


class Metrics:
    """The registry of one gateway. Names follow vLLM's, with ``hetero:`` in front."""

    def __init__(self, facts: Callable[[], Facts], admission: Admission) -> None:
        """``facts`` may take its time: it is asked once a scrape, away from the event loop."""
        self._registry = registry = CollectorRegistry()
        registry.register(_Around(facts, admission))

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"hetero:{name}", what, labels, registry=registry)

        self._drafts = counter("spec_decode_num_drafts", "Windows that held draft tokens.")
        self._draft_tokens = counter("spec_decode_num_draft_tokens", "Draft tokens checked.")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Draft tokens accepted.")
        self._by_source = counter("draft_tokens", "Draft tokens checked, by who proposed them.", "source")
        self._hits_by_source = counter("accepted_draft_tokens", "Those of them accepted.", "source")
        self._at = counter("spec_decode_num_accepted_tokens_per_pos", "Draft tokens accepted by place.", "position")
        self._forwards = counter("target_forwards", "Target forwards, counted once for each sequence in them.")
        self._prompt = counter("prompt_tokens", "Prompt tokens of finished sequences.")
        self._cached = counter("prompt_tokens_cached", "Those of them taken from cached prefixes.")
        self._output = counter("generation_tokens", "Output tokens of finished sequences.")
        self._plain = counter("plain_tokens", "Those of them decided with speculation off because it lost.")
        self._ended = counter("sequences", "Sequences that ended, by reason.", "reason")
        self._first = Histogram(
            "hetero:time_to_first_token_seconds", "From the request to its first token.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._between = Histogram(
            "hetero:inter_token_latency_seconds", "Between tokens; those of one window share its time.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """All of it in Prometheus' text format. Blocks while the workers are asked."""
        return generate_latest(self._registry)

    async def watched(self, deltas: AsyncGenerator[Delta]) -> AsyncGenerator[Delta]:
        """The same deltas, measured on their way."""
        last, begun, reason = time.monotonic(), False, "cut"
        try:
            async with aclosing(deltas) as source:
                async for delta in source:
                    if delta.tokens:
                        elapsed, last = delta.at - last, delta.at
                        if begun:
                            for _ in delta.tokens:
                                self._between.observe(max(0.0, elapsed) / len(delta.tokens))
                        else:
                            self._first.observe(max(0.0, elapsed))
                            begun = True
                    if delta.stats is not None:
                        self._count(delta.stats)
                        reason = delta.reason or reason
                    yield delta
        finally:
            self._ended.labels(reason).inc()

    def _count(self, stats: Stats) -> None:
        self._drafts.inc(stats.drafts_n)
        self._draft_tokens.inc(stats.draft_n)
        self._accepted.inc(stats.draft_n_accepted)
        for source, (count, hits) in stats.sources.items():
            self._by_source.labels(source).inc(count)
            self._hits_by_source.labels(source).inc(hits)
        for place, count in enumerate(stats.accepted_at):
            self._at.labels(str(place)).inc(count)
        self._forwards.inc(stats.forwards_n)
        self._prompt.inc(stats.prompt_n)
        self._cached.inc(stats.cached_n)
        self._output.inc(stats.predicted_n)
        self._plain.inc(stats.plain_n)


class _Around(Collector):
    """Gauges of the moment."""

    def __init__(self, facts: Callable[[], Facts], admission: Admission) -> None:
        self._facts, self._admission = facts, admission

    def describe(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        return iter(())  # nothing is asked of the workers before the first scrape

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        facts = self._facts()
        targets = [status for status in facts.statuses.values() if status.role == "target"]
        running, waiting = sum(one.active for one in targets), sum(one.waiting for one in targets)
        yield GaugeMetricFamily("hetero:num_sequences_running", "Sequences in the engine.", running)
        yield GaugeMetricFamily("hetero:num_sequences_waiting", "Sequences waiting for a place in it.", waiting)
        yield GaugeMetricFamily("hetero:num_sequences_admitted", "Sequences taken on.", self._admission.sequences)
        yield CounterMetricFamily("hetero:requests_refused", "Requests answered 429.", self._admission.refused)
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            "prefixes": GaugeMetricFamily("hetero:cached_prefixes", "Finished sequences kept.", labels=["role"]),
            "tokens": GaugeMetricFamily("hetero:cached_prefix_tokens", "Tokens in them.", labels=["role"]),
            "busy": CounterMetricFamily("hetero:engine_busy_seconds", "Time an engine worked.", labels=["role"]),
            "memory": GaugeMetricFamily("hetero:worker_memory_bytes", "Memory of a worker.", labels=["role"]),
            "restarts": CounterMetricFamily("hetero:worker_restarts", "Workers started again.", labels=["role"]),
            "dropped": CounterMetricFamily("hetero:dropped_frames", "Frames that made no sense.", labels=["role"]),
            "lessons": GaugeMetricFamily("hetero:drafter_lessons", "Texts a drafter learns from.", labels=["role"]),
            "studied": CounterMetricFamily("hetero:drafter_study_steps", "Its steps of learning.", labels=["role"]),
            "agreed": GaugeMetricFamily("hetero:draft_agreement", "Drafts that are right.", labels=["role", "when"]),
            "away": CounterMetricFamily("hetero:peers_turned_away", "Peers without a known key.", labels=["role"]),
        }
        families["dropped"].add_metric(["gateway"], facts.dropped)
        for role, restarts in facts.restarts.items():
            families["restarts"].add_metric([role], restarts)
        for role, status in facts.statuses.items():
            families["prefixes"].add_metric([role], status.prefixes)
            families["tokens"].add_metric([role], status.prefix_tokens)
            families["busy"].add_metric([role], status.busy_s)
            families["memory"].add_metric([role], status.memory)
            families["dropped"].add_metric([role], status.dropped)
            families["away"].add_metric([role], status.turned_away)
            if status.role == "drafter":
                families["lessons"].add_metric([role], status.lessons)
                families["studied"].add_metric([role], status.studied)
            if status.speeds is not None and any(drafter.drafted for drafter in status.drafters):
                families["agreed"].add_metric([role, "first"], status.speeds.alpha_first)
                families["agreed"].add_metric([role, "now"], status.speeds.alpha)
        yield from families.values()
