"""Who serves a teacher now, asked of its directory or of DNS; chooses nobody."""

from __future__ import annotations

import socket
from typing import Any

import grpc

from student_client.connection.credentials import Credentials
from teaching_protocol.channel import channel_options, error_from
from teaching_protocol.directory import RESOLVE, Replica, read_replicas
from teaching_protocol.errors import TeacherUnavailable

__all__ = ["DNS", "expanded", "resolve"]

DNS = "dns:///"
"""What the name of a service with an address for each replica begins with: `dns:///teachers.lab.svc:50051`."""

_REPLY_BYTES = 2**22


def resolve(address: str, credentials: Credentials, limit_s: float) -> tuple[Replica, ...] | None:
    """Asks at `address` for the replicas of its fleet.

    Returns:
        the replicas; none of them where a teacher stands alone, or is of a release without directory; None where nobody
        answers within `limit_s` seconds.

    Raises:
        TeachingError: what the server itself says: it does not know who asks, or has no replica yet.
    """
    with credentials.channel(address, channel_options(_REPLY_BYTES)) as channel:
        ask: Any = channel.unary_unary(RESOLVE)
        try:
            return read_replicas(ask(b"", timeout=limit_s, metadata=credentials.metadata()))
        except grpc.RpcError as failure:
            error: Any = failure
            told = error_from(tuple(error.trailing_metadata() or ()), error.details() or "")
            if told is not None:
                raise told from failure
            return () if error.code() is grpc.StatusCode.UNIMPLEMENTED else None


def expanded(address: str) -> list[str]:
    """The `host:port` of every address that DNS has for a name after `dns:///`; any other address alone.

    Raises:
        TeacherUnavailable: the name has no address now, as that of a headless service before its first pod is ready.
    """
    if not address.startswith(DNS):
        return [address]
    host, _, port = address.removeprefix(DNS).rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError, UnicodeError) as error:
        raise TeacherUnavailable(
            f"{address} has no address ({error}); expected dns:///NAME:PORT, the name of a service with a replica that serves"
        ) from error
    hosts = {str(each[4][0]) for each in found}
    return sorted(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)
