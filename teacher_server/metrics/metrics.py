"""Every instrument of the server, each a field of one object; knows nobody who touches them."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from teacher_server.metrics.student_metrics import StudentTable
from teaching_protocol.errors import ERRORS

__all__ = ["Metrics"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PACK_SECONDS = (0.0001, 0.00025, *_SECONDS[:11])
_NORMS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
_VARIANCES = (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 20.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_ERRORS = (0.001, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0)
_STUDENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Metrics:
    """One registry and its instruments. Label values come from closed sets, but for the names of students.

    Args:
        students: how many students have series of their own.
    """

    def __init__(self, students: int = 100) -> None:
        self.registry = CollectorRegistry()
        self.process = ProcessCollector(registry=self.registry)
        self.students = StudentTable(students)
        self.registry.register(self.students)
        self._calls()
        self._batches()
        self._students()
        self._memory()
        self._training()
        self.serving = self._gauge("teacher_serving", "1 while health says SERVING.")
        self.draining = self._gauge("teacher_draining", "1 while the server drains.")
        self.config_reloads = self._counter(
            "teacher_config_reloads", "Configurations read again, by result.", ["result"]
        )
        for result in ("ok", "failed"):
            self.config_reloads.labels(result)
        self.config_holds = self._gauge(
            "teacher_config_last_reload_successful",
            "1 while the configuration that was read last is the one that holds.",
        )
        self.config_holds.set(1)
        self.config_reloaded = self._gauge(
            "teacher_config_last_reload_success_timestamp_seconds",
            "When the configuration was last read without fault.",
        )
        self.model = Info("teacher_model", "The model that is served.", registry=self.registry)

        self._known_labels()

    def _known_labels(self) -> None:
        """Series that begin at 0 and not when something first happens: else nobody would see that first time as a rise."""
        for reason in (*ERRORS, "cancelled", "expired"):
            self.rejected.labels(reason)
        for cause in ("leave", "lease", "revoked", "shutdown"):
            self.session_ends.labels(cause)
        for kind in ("alone", "refused"):
            self.quarantines.labels(kind)
        for method in ("Forward", "Backward", "Step"):
            self.non_finite.labels(method)
        for method in ("Forward", "Backward"):
            self.int8_fallbacks.labels(method)
        for direction in ("received", "sent"):
            self.bytes.labels(direction)
            self.shared_bytes.labels(direction)

    def _calls(self) -> None:
        seconds = partial(self._histogram, buckets=_SECONDS, labels=["method"])
        self.requests = self._counter("teacher_requests", "Calls answered.", ["method", "code"])
        self.rejected = self._counter("teacher_rejected", "Calls refused, by reason.", ["reason"])
        self.open_calls = self._gauge(
            "teacher_open_calls", "Calls of sessions from their request to the delivery of their reply."
        )
        self.call_seconds = seconds(
            "teacher_call_seconds", "Seconds of a call in the server, from its request to its packed reply."
        )
        self.queue_seconds = seconds("teacher_queue_seconds", "Seconds a job waited for the engine.")
        self.compute_seconds = seconds("teacher_compute_seconds", "Seconds the engine ran a job.")
        self.pack_seconds = self._histogram(
            "teacher_pack_seconds", "Seconds a call was unpacked and its reply packed.", _PACK_SECONDS, ["method"]
        )
        self.bytes = self._counter("teacher_transfer_bytes", "Bytes of calls.", ["direction"])
        self.shared_bytes = self._counter(
            "teacher_shared_bytes", "Bytes of calls that went through shared memory.", ["direction"]
        )
        self.shared_connections = self._gauge(
            "teacher_shared_connections", "Students that share memory with the server."
        )
        self.int8_error = self._histogram(
            "teacher_int8_error", "Relative error of a reply's tensor tried as int8.", _ERRORS, ["method"]
        )
        self.int8_fallbacks = self._counter(
            "teacher_int8_fallbacks", "Tensors sent as bf16, int8 being too rough.", ["method"]
        )

    def _batches(self) -> None:
        self.in_flight = self._gauge("teacher_in_flight", "Jobs that wait or run.")
        self.permits = self._gauge("teacher_permits", "Jobs that may wait or run at once.")
        self.queue_length = self._gauge("teacher_queue_length", "Jobs that wait for the engine.")
        self.oldest_wait = self._gauge("teacher_oldest_wait_seconds", "Seconds the longest waiting job has waited.")
        self.busy_seconds = self._counter(
            "teacher_engine_busy_seconds",
            "Seconds in which the engine ran a batch; of one on some of its cores their share.",
        )
        self.batch_rows = self._histogram("teacher_batch_rows", "Rows of a batch.", _ROWS)
        self.batch_tokens = self._histogram("teacher_batch_tokens", "Tokens of a batch.", _TOKENS)
        self.batch_students = self._histogram(
            "teacher_batch_students", "Students merged into a batch.", _STUDENTS, ["method"]
        )
        self.active_students = self._histogram(
            "teacher_batch_active_students",
            "Students at work when a batch was formed: those that wait and those expected.",
            _STUDENTS,
            ["method"],
        )
        self.linger_seconds = self._histogram(
            "teacher_batch_linger_seconds",
            "Seconds a batch was held back for students about to call.",
            _SECONDS,
            ["method"],
        )
        self.asides = self._counter(
            "teacher_batch_asides", "Short batches that went first in a pause between two layers of a long one."
        )
        self.batch_retries = self._counter(
            "teacher_batch_retries", "Batches that failed and were run again job by job."
        )
        self.batch_culprits = self._counter(
            "teacher_batch_culprits", "Jobs that failed when they were run again alone."
        )

    def _students(self) -> None:
        self.sessions = self._gauge("teacher_sessions", "Sessions alive.")
        self.session_limit = self._gauge("teacher_session_limit", "Sessions that may live at once.")
        self.session_ends = self._counter("teacher_session_ends", "Sessions ended, by cause.", ["cause"])
        self.session_steps = self._counter("teacher_session_steps", "Codec steps applied.")
        self.served_tokens = self._counter("teacher_served_tokens", "Tokens charged to students.", ["method"])
        self.strikes = self._counter("teacher_strikes", "Jobs that failed by their student's fault.")
        self.quarantines = self._counter("teacher_quarantines", "Students set apart, by how.", ["kind"])

    def _memory(self) -> None:
        self.graph_bytes = self._gauge("teacher_graph_cache_bytes", "Bytes of kept graphs.")
        self.graph_limit = self._gauge("teacher_graph_cache_limit_bytes", "Bytes that kept graphs may take.")
        self.graph_hits = self._counter("teacher_graph_cache_hits", "Backwards served by a kept graph.")
        self.graph_evictions = self._counter("teacher_graph_cache_evictions", "Graphs let go unused.")
        self.recomputes = self._counter("teacher_graph_recomputes", "Backwards that ran their Forward again.")
        self.knowledge_bytes = self._gauge("teacher_knowledge_cache_bytes", "Bytes of kept knowledge.")
        self.knowledge_limit = self._gauge("teacher_knowledge_cache_limit_bytes", "Bytes that kept knowledge may take.")
        self.knowledge_hits = self._counter("teacher_knowledge_cache_hits", "Rows found in the cache.")
        self.knowledge_misses = self._counter("teacher_knowledge_cache_misses", "Rows computed.")
        self.session_bytes = self._gauge(
            "teacher_session_bytes",
            "Bytes that sessions hold: codecs and optimizers, inputs for a recompute, replies for a repeat.",
            ["kind"],
        )
        self.state_limit = self._gauge(
            "teacher_session_state_limit_bytes", "Bytes that codecs and optimizers of all sessions may take."
        )
        self.device_memory = self._gauge("teacher_device_memory_bytes", "Memory the process holds on its device.")
        self.device_limit = self._gauge("teacher_device_memory_limit_bytes", "Memory the process may hold there.")

    def _training(self) -> None:
        self.message_variance = self._histogram(
            "teacher_message_variance",
            "Variance of messages over rows and tokens, mean over features, of one call in sixteen.",
            _VARIANCES,
            ["direction"],
        )
        self.codec_grad_norm = self._histogram(
            "teacher_codec_grad_norm", "Norm of a session's codec gradient at its step, before clipping.", _NORMS
        )
        self.non_finite = self._counter("teacher_non_finite", "Calls refused for NaN or infinity.", ["method"])

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(name, text, labels or [], registry=self.registry)

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(name, text, labels or [], registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: list[str] | None = None
    ) -> Histogram:
        return Histogram(name, text, labels or [], buckets=buckets, registry=self.registry)
