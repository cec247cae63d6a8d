"""Which replicas there are, by what they last reported; pure values with the time handed in; knows no Ray and no network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from teaching_protocol.directory import Replica, ReplicaState

__all__ = ["Registry", "Report"]


@dataclass(frozen=True)
class Report:
    """What one replica says of itself.

    Attributes:
        name: of its place; a replica that is started again there has the same.
        address, metrics: `host:port` of its service and of its metrics; empty where it has none.
        pid: of its process.
        state: `starting` while it loads; nobody is sent there, and it may be silent for as long as that takes.
        queue_s, sessions: as of `Replica`.
        gpus: that it sees, as CUDA_VISIBLE_DEVICES names them.
    """

    name: str
    address: str
    metrics: str
    pid: int
    state: ReplicaState | Literal["starting"] = "serving"
    queue_s: float = 0.0
    sessions: int = 0
    gpus: str = ""

    @property
    def replica(self) -> Replica | None:
        """As students are told of it; None while it starts."""
        if self.state == "starting":
            return None
        return Replica(self.name, self.address, self.state, self.queue_s, self.sessions)


class Registry:
    """The last report of every replica. Lost, it fills again within one beat: it holds nothing that is not said again.

    Args:
        stale_s: seconds without a report after which students are not sent to a replica.
    """

    def __init__(self, stale_s: float) -> None:
        self._stale_s = stale_s
        self._reports: dict[str, tuple[Report, float]] = {}
        self._asked: set[str] = set()

    def take(self, report: Report, now: float) -> tuple[Replica, ...]:
        """Takes a report in; gives the listing."""
        self._reports[report.name] = report, now
        return self.listing(now)

    def forget(self, name: str) -> None:
        """Lets go of a replica that has ended."""
        self._reports.pop(name, None)
        self._asked.discard(name)

    def listing(self, now: float) -> tuple[Replica, ...]:
        """The replicas that students may be told of, by name."""
        known = [report.replica for report, at in self._reports.values() if now - at < self._stale_s]
        return tuple(sorted((each for each in known if each is not None), key=lambda each: each.name))

    def reports(self, now: float) -> dict[str, tuple[Report, float]]:
        """Every last report and its age in seconds, by name."""
        return {name: (report, now - at) for name, (report, at) in self._reports.items()}

    def ask_to_replace(self, name: str) -> bool:
        """Notes that somebody wants a replica drained, its replacement being up; false for one that is not there."""
        if name not in self._reports:
            return False
        self._asked.add(name)
        return True

    @property
    def asked(self) -> frozenset[str]:
        """Replicas that somebody wants replaced."""
        return frozenset(self._asked)
