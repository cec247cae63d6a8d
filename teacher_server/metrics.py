"""Every instrument of the server, each a field of one object; knows nobody who touches them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

__all__ = ["Metrics"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_ERRORS = (0.001, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0)
_STUDENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Metrics:
    """One registry and its instruments. Label values come from closed sets."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("teacher_requests", "Calls answered.", ["method", "code"], registry=registry)
        self.queue_seconds = _seconds("teacher_queue", "Seconds a job waited for the engine.", registry)
        self.compute_seconds = _seconds("teacher_compute", "Seconds the engine ran a job.", registry)
        self.pack_seconds = _seconds("teacher_pack", "Seconds a call was unpacked and its reply packed.", registry)
        self.batch_rows = Histogram("teacher_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=registry)
        self.batch_tokens = Histogram("teacher_batch_tokens", "Tokens of a batch.", buckets=_TOKENS, registry=registry)
        self.batch_retries = Counter(
            "teacher_batch_retries", "Batches that failed and were run again job by job.", registry=registry
        )
        self.batch_culprits = Counter(
            "teacher_batch_culprits", "Jobs that failed when they were run again alone.", registry=registry
        )
        self.batch_students = Histogram(
            "teacher_batch_students", "Students merged into a batch.", ["method"], buckets=_STUDENTS, registry=registry
        )
        self.active_students = Histogram(
            "teacher_batch_active_students",
            "Students at work when a batch was formed: those that wait and those expected.",
            ["method"],
            buckets=_STUDENTS,
            registry=registry,
        )
        self.linger_seconds = Histogram(
            "teacher_batch_linger_seconds",
            "Seconds a batch was held back for students about to call.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("teacher_in_flight", "Jobs that wait or run.", registry=registry)
        self.open_calls = Gauge(
            "teacher_open_calls",
            "Calls of sessions from their request to the delivery of their reply.",
            registry=registry,
        )
        self.rejected = Counter("teacher_rejected", "Calls refused, by reason.", ["reason"], registry=registry)
        self.sessions = Gauge("teacher_sessions", "Sessions alive.", registry=registry)
        self.session_ends = Counter("teacher_session_ends", "Sessions ended, by cause.", ["cause"], registry=registry)
        self.served_tokens = Counter(
            "teacher_served_tokens", "Tokens charged to students.", ["method"], registry=registry
        )
        self.strikes = Counter("teacher_strikes", "Jobs that failed by their student's fault.", registry=registry)
        self.quarantines = Counter("teacher_quarantines", "Students set apart, by how.", ["kind"], registry=registry)
        self.session_steps = Counter("teacher_session_steps", "Codec steps applied.", registry=registry)
        self.bytes = Counter("teacher_transfer_bytes", "Bytes of calls.", ["direction"], registry=registry)
        self.int8_error = Histogram(
            "teacher_int8_error",
            "Relative error of a reply's tensor tried as int8.",
            ["method"],
            buckets=_ERRORS,
            registry=registry,
        )
        self.int8_fallbacks = Counter(
            "teacher_int8_fallbacks", "Tensors sent as bf16, int8 being too rough.", ["method"], registry=registry
        )
        self.shared_bytes = Counter(
            "teacher_shared_bytes", "Bytes of calls that went through shared memory.", ["direction"], registry=registry
        )
        self.shared_connections = Gauge(
            "teacher_shared_connections", "Students that share memory with the server.", registry=registry
        )
        self.graph_bytes = Gauge("teacher_graph_cache_bytes", "Bytes of kept graphs.", registry=registry)
        self.graph_hits = Counter("teacher_graph_cache_hits", "Backwards served by a kept graph.", registry=registry)
        self.graph_evictions = Counter("teacher_graph_cache_evictions", "Graphs let go unused.", registry=registry)
        self.recomputes = Counter(
            "teacher_graph_recomputes", "Backwards that ran their Forward again.", registry=registry
        )
        self.knowledge_bytes = Gauge("teacher_knowledge_cache_bytes", "Bytes of kept knowledge.", registry=registry)
        self.knowledge_hits = Counter("teacher_knowledge_cache_hits", "Rows found in the cache.", registry=registry)
        self.knowledge_misses = Counter("teacher_knowledge_cache_misses", "Rows computed.", registry=registry)
        self.device_memory = Gauge(
            "teacher_device_memory_bytes", "Memory the process holds on its device.", registry=registry
        )
        self.draining = Gauge("teacher_draining", "1 while the server drains.", registry=registry)
        self.model = Info("teacher_model", "The model that is served.", registry=registry)


def _seconds(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"{name}_seconds", text, ["method"], buckets=_SECONDS, registry=registry)
