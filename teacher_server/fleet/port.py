"""The fleet's own small port: the directory and health, for students that know one address; serves no teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

import grpc

from teacher_server.config import ServerConfig
from teacher_server.metrics.metrics import Metrics
from teacher_server.scheduling.threads import CallThreads
from teacher_server.security.authority import Authority
from teacher_server.security.tls import bind, check_bind, server_credentials
from teacher_server.serving.directory import add_directory
from teacher_server.serving.health import Health
from teacher_server.serving.interceptors import CallInterceptor
from teaching_protocol.channel import server_options
from teaching_protocol.directory import Replica
from teaching_protocol.errors import TeacherUnavailable

__all__ = ["DirectoryPort"]

_CALLS, _MESSAGE_BYTES = 16, 2**22


class DirectoryPort:
    """Answers Resolve, under the same TLS and tokens as the teachers; a context manager.

    Args:
        config: of the teachers; its host and port are those of this port.
        listing: the replicas that are known now.

    Attributes:
        port: that it has bound.
    """

    def __init__(self, config: ServerConfig, listing: Callable[[], Sequence[Replica]]) -> None:
        self._config, self._listing = config, listing
        self.port = 0

    def serving(self, *, is_complete: bool) -> None:
        """Says by health whether the fleet serves."""
        self._health.set(serving=is_complete)

    def __enter__(self) -> DirectoryPort:
        config = self._config
        check_bind(config)
        authority = Authority(config.tokens, config.client_ca is not None, config.revoked_certs)
        self._threads, self._health = CallThreads(_CALLS), Health()
        interceptor = CallInterceptor(Metrics(0), self._threads, lambda: None, authority)
        self._server = grpc.server(
            self._threads.work, interceptors=[interceptor], options=server_options(_MESSAGE_BYTES)
        )
        add_directory(self._server, self._somebody, authority)
        self._health.add_to(self._server)
        self.port = bind(self._server, config.host, config.port, server_credentials(config))
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(grace=0.5).wait()
        self._threads.close()

    def _somebody(self) -> Sequence[Replica]:
        found = self._listing()
        if not any(each.state == "serving" for each in found):
            raise TeacherUnavailable("no teacher of this fleet serves now; ask again when one does")
        return found
