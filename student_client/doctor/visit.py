"""One visit of the doctor to a teacher: its connections and sessions, opened when needed and ended whatever happens."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from student_client.connection.credentials import Credentials
from student_client.connection.transport import GrpcTransport
from teaching_protocol.diagnosis.connection import Door
from teaching_protocol.diagnosis.probe import Probe, doctor_name, probe_settings
from teaching_protocol.errors import CallCancelled, ConfigError
from teaching_protocol.verbs import DescribeReply, SessionSettings

__all__ = ["Visit"]

_CALL_S, _CLOSE_S = 10.0, 3.0


@dataclass
class Visit:
    """Where to, as whom, and what was opened there. Use as a context manager.

    Attributes:
        address: `host:port`.
        credentials: as of a student.
        limit_s: seconds a check may take.
        card: the teacher's, once it was asked for.
        transport: the connection all checks share; without shared memory.
        probe: the small session most checks share.
    """

    address: str
    credentials: Credentials
    limit_s: float
    card: DescribeReply = field(default_factory=DescribeReply)
    _transports: list[GrpcTransport] = field(default_factory=list)
    _probes: list[Probe] = field(default_factory=list)
    _enrolling: threading.Lock = field(default_factory=threading.Lock)
    _is_closed: bool = False

    @property
    def call_s(self) -> float:
        """Deadline of one call."""
        return min(_CALL_S, self.limit_s)

    @property
    def door(self) -> Door:
        """The address as plain sockets see it."""
        mine = self.credentials
        return Door(self.address, mine.uses_tls, mine.ca, mine.cert, mine.key, mine.server_name or "")

    @property
    def transport(self) -> GrpcTransport:
        """The first connection."""
        return self._transports[0] if self._transports else self.connect()

    @property
    def probe(self) -> Probe:
        """The first session."""
        if not self._probes:
            raise ConfigError("no session is open; see the check `session`")
        return self._probes[0]

    def take(self, card: DescribeReply) -> None:
        """Notes the teacher's card."""
        self.card = card

    def connect(self, *, shared_memory: bool = False) -> GrpcTransport:
        """Opens a connection; nobody is waited for."""
        transport = GrpcTransport(
            self.address, "none", patience_s=0.0, shared_memory=shared_memory, credentials=self.credentials
        )
        self._transports.append(transport)
        return transport

    def enroll(self, purpose: str, settings: SessionSettings | None = None) -> Probe:
        """Opens a session of the doctor's own, which ends with the visit at the latest."""
        with self._enrolling:
            if self._is_closed:
                raise CallCancelled("the visit is over; nothing new is opened")
            made = Probe(self.transport, doctor_name(purpose), settings or probe_settings(self.card), self.call_s)
            self._probes.append(made)
            return made.enroll()

    def close(self) -> None:
        """Leaves all sessions and closes all connections; a session that is being opened by a check is waited for."""
        self._is_closed = True
        if self._enrolling.acquire(timeout=_CLOSE_S):
            self._enrolling.release()
        for probe in self._probes:
            probe.teacher = self.transport
            probe.leave()
        for transport in self._transports:
            transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
