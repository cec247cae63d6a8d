"""One teacher of a fleet: serves, reports, and tells students of the others; knows no Ray."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.fleet.registry import Report
from teaching_protocol.directory import Replica

__all__ = ["FleetTeacher", "of_a_fleet"]

_WINDOW_S = 10.0
_HANDOFF_S = 30.0

Exchange = Callable[[Report], Sequence[Replica]]


def of_a_fleet(config: ServerConfig) -> ServerConfig:
    """The configuration of one replica: free ports, and time for students to move when it drains."""
    changed: dict[str, Any] = {
        "port": 0,
        "metrics_port": -1 if config.metrics_port < 0 else 0,
        "ends_with_input": False,
    }
    if "handoff_s" not in config.model_fields_set:
        changed["handoff_s"] = _HANDOFF_S  # it ends when the last student has left
    return config.model_copy(update=changed)


class FleetTeacher:
    """A served teacher that reports to its fleet.

    Args:
        name: of its place in the fleet.
        config: of the server.
        host: where others reach this machine.
        exchange: takes a report to the directory and brings the listing back; may fail, then the last listing holds.
        beat_s: seconds from report to report.
        gpus: that it sees, for the reports.
    """

    def __init__(
        self, name: str, config: ServerConfig, host: str, exchange: Exchange, beat_s: float, gpus: str = ""
    ) -> None:
        self._gpus = gpus
        self._name, self._host, self._exchange, self._beat_s = name, host, exchange, beat_s
        self._app = TeacherApp(of_a_fleet(config), listing=lambda: self._listing)
        self._listing: Sequence[Replica] = ()
        self._waits: deque[tuple[float, float, float]] = deque()
        self._draining, self._ended = threading.Event(), threading.Event()
        self._reporting = threading.Lock()

    def start(self) -> FleetTeacher:
        """Serves, and has reported that when it returns; errors as of `TeacherApp.start`."""
        self._app.start()
        self._report()
        threading.Thread(target=self._beat, name="report", daemon=True).start()
        return self

    def drain(self) -> None:
        """Sends students elsewhere, ends when the last has left or the server's limits have passed."""
        if self._draining.is_set():
            return
        self._draining.set()
        self._report()  # whoever asks the directory from now on is not sent here
        self._app.close()
        self._ended.set()

    @property
    def report(self) -> Report:
        """What it says of itself now."""
        app = self._app
        return Report(
            self._name,
            f"{self._host}:{app.port}",
            f"{self._host}:{app.metrics_port}" if app.metrics_port else "",
            os.getpid(),
            "draining" if self._draining.is_set() else "serving",
            self._queue_s(),
            len(app.actor.sessions),
            self._gpus,
        )

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            self._report()

    def _report(self) -> None:
        with self._reporting:
            report = self.report
            try:
                self._listing = self._exchange(report)
            except Exception:  # whatever keeps the directory away, students are told what was known
                others = [each for each in self._listing if each.name != self._name]
                own = report.replica
                self._listing = (*others, *([] if own is None else [own]))

    def _queue_s(self) -> float:
        """Seconds that a job waited for the engine, in the mean of those of the last seconds; 0 where there was none."""
        now, total_s, count = time.monotonic(), 0.0, 0.0
        for family in self._app.metrics.queue_seconds.collect():
            for sample in family.samples:
                total_s += sample.value if sample.name.endswith("_sum") else 0.0
                count += sample.value if sample.name.endswith("_count") else 0.0
        while self._waits and now - self._waits[0][0] > _WINDOW_S:
            self._waits.popleft()
        self._waits.append((now, total_s, count))
        _, first_s, first = self._waits[0]
        return (total_s - first_s) / (count - first) if count > first else 0.0
