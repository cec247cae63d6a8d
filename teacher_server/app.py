"""Wiring and lifecycle of one teacher server: build, warm up, serve, drain, stop."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import grpc
import torch
from prometheus_client import disable_created_metrics

from teacher_server.actor import TeacherActor, build_card
from teacher_server.config import ServerConfig
from teacher_server.live import LiveSettings
from teacher_server.local import make_engine
from teacher_server.metrics.metrics import Metrics
from teacher_server.models.split import FrozenTeacher
from teacher_server.reloading import reload
from teacher_server.scheduling.scheduler import ThreadScheduler
from teacher_server.scheduling.threads import CallThreads
from teacher_server.security.authority import Authority
from teacher_server.security.tls import bind, check_bind, server_credentials
from teacher_server.serving.debugging import add_debugging
from teacher_server.serving.directory import Listing, add_directory, nobody
from teacher_server.serving.health import Health
from teacher_server.serving.interceptors import CallInterceptor
from teacher_server.serving.same_host import SameHost
from teacher_server.serving.service import add_service
from teacher_server.web.gauges import look_up
from teacher_server.web.snapshot import State
from teacher_server.web.status import status_server
from teaching_protocol.channel import server_options
from teaching_protocol.errors import Draining, InvalidSetting
from teaching_protocol.tracing import start_tracing

__all__ = ["TeacherApp"]

_log = logging.getLogger(__name__)

_SIGNAL_S = 0.5


class TeacherApp:
    """One teacher server. `start` returns when it serves; use as a context manager, or `close` it.

    Args:
        config: of the server.
        teacher: a loaded one; None loads that of the configuration.
        listing: the replicas that it tells students of.
    """

    def __init__(self, config: ServerConfig, teacher: FrozenTeacher | None = None, listing: Listing = nobody) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.config = config
        self.live = LiveSettings(config)
        self.metrics = Metrics(config.metrics_students)
        self.metrics.config_reloaded.set(time.time())
        self.port = 0
        self.metrics_port = 0
        self._teacher, self._listing = teacher, listing
        self._health = Health()
        self._same_host = SameHost(config.shared_memory_bytes if config.shared_memory else 0, config.max_sessions)
        self._closing = threading.Event()
        self._reload_asked = threading.Event()
        self._read_again: Callable[[], ServerConfig] | None = None

    def reloading(self, read: Callable[[], ServerConfig]) -> None:
        """Says how the configuration is read again when somebody asks for that (see `ask_to_reload`)."""
        self._read_again = read

    def start(self) -> TeacherApp:
        """Loads, binds, warms up, and reports SERVING.

        Raises:
            PortInUse, ModelLoadError, UnsupportedFamily, InvalidSetting, ConfigError: with what to do.
        """
        check_bind(self.config)
        self._credentials = server_credentials(self.config)
        self._tracing = start_tracing("teacher-server", self.config.tracing)
        self._authority = Authority(self.config.tokens, self.config.client_ca is not None, self.config.revoked_certs)
        if self.config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA's products need to be so
            torch.use_deterministic_algorithms(True)
        with ExitStack() as undo:
            self._engine = make_engine(self.config, self.metrics, self._teacher)
            undo.callback(self._engine.close)
            card = build_card(self._engine, self.config)
            if not 0 <= card.entry < card.exit <= card.layers:
                where = f"entry {card.entry}, exit {card.exit}"
                raise InvalidSetting(f"{where}: expected 0 <= entry < exit <= {card.layers}")
            self._same_host.start()
            undo.callback(self._same_host.close)
            self._scheduler = ThreadScheduler(self._engine, self.live, self.metrics)
            self.actor = TeacherActor(card, self._engine, self._scheduler, self.live, self.metrics)
            look_up(self.metrics, self.live, self._scheduler, self.actor.sessions, self._engine.teacher.device)
            undo.callback(self._stop_web)
            self._start_web()
            self._server = self._bound_server()
            undo.callback(self._threads.close)
            self._scheduler.start()
            undo.callback(self._scheduler.stop)
            self._server.start()
            undo.callback(lambda: self._server.stop(None).wait())
            self.actor.warm_up()
            undo.pop_all()
        self._reaper = threading.Thread(target=self._reap, name="reaper", daemon=True)
        self._reaper.start()
        self._health.set(serving=True)
        self.metrics.serving.set(1)
        _log.info("teacher %s serves on %s:%d, %s", card.model_name, self.config.host, self.port, self._trust())
        return self

    def wait(self) -> None:
        """Blocks until somebody asks for the drain (see `drain`)."""
        while not self._closing.wait(_SIGNAL_S):  # a signal that another thread received does not wake this one
            if self._reload_asked.is_set():
                self._reload_asked.clear()
                self.reload()

    def ask_to_drain(self) -> None:
        """Ends `wait`; safe in a signal handler."""
        self._closing.set()

    def ask_to_reload(self) -> None:
        """Has `wait` read the configuration again; safe in a signal handler."""
        self._reload_asked.set()

    def reload(self) -> None:
        """Reads the configuration again and takes over what a running server can; a bad one changes nothing."""
        if self._read_again is not None:
            reload(self._read_again, self.live, self._threads.most_permits, self.metrics)

    def close(self) -> None:
        """Drains: NOT_SERVING, refuse new work, finish what was admitted, end."""
        self._closing.set()
        _log.info("draining: %d sessions, nothing new is begun", len(self.actor.sessions))
        self._health.set(serving=False)
        self.metrics.serving.set(0)
        self.metrics.draining.set(1)
        finished = self._scheduler.drain(self.live.now.drain_s)
        if not finished:
            _log.warning("the drain limit of %.0f s came before the last job was done", self.live.now.drain_s)
        self._hand_off()
        for session in self.actor.sessions.live():
            session.roll.call_off(Draining("the server shut down while this Step waited for other ranks"))
        self._server.stop(grace=1.0 if finished else 0.0).wait()
        self._scheduler.stop()
        self._engine.close()
        self._threads.close()
        for session in self.actor.sessions.live():
            self.actor.end(session, "shutdown")
        self._same_host.close()
        self._stop_web()
        self._reaper.join()
        self._tracing.close()
        _log.info("ended")

    def _trust(self) -> str:
        way = "TLS" if self._credentials is not None else "no TLS"
        asked = [
            name
            for name, given in (("tokens", self.config.tokens), ("client certificates", self.config.client_ca))
            if given
        ]
        return f"{way}, {' or '.join(asked) or 'nobody is asked who they are'}"

    def _hand_off(self) -> None:
        """Leaves the students a moment to finish their step, export and leave; none, if nobody is there."""
        limit = time.monotonic() + self.live.now.handoff_s
        while len(self.actor.sessions) and time.monotonic() < limit:
            time.sleep(0.02)

    def __enter__(self) -> TeacherApp:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bound_server(self) -> grpc.Server:
        self._threads = CallThreads(self.config.permits)
        server = grpc.server(
            self._threads.work,
            interceptors=[CallInterceptor(self.metrics, self._threads, self._scheduler.refusal, self._authority)],
            options=server_options(self.config.message_bytes),
        )
        add_service(server, self.actor, self.metrics, self.live, self._same_host, self._authority, self._tracing)
        add_directory(server, self._listing, self._authority)
        self._health.add_to(server)
        add_debugging(server, reflection=self.config.reflection, channelz=self.config.channelz)
        self.port = bind(server, self.config.host, self.config.port, self._credentials)
        return server

    def _start_web(self) -> None:
        if self.config.metrics_port < 0:
            return
        self.metrics.shared_connections.set_function(lambda: len(self._same_host))
        card = self.actor.card
        self.metrics.model.info(
            {"name": card.model_name, "family": card.family, "hash": card.model_hash[:12], "dtype": card.dtype}
        )
        device = self._engine.teacher.device
        web = status_server(self.live, self.actor, device, self.metrics, self._authority, self._state)
        web.start()
        self._web, self.metrics_port = web, web.port

    def _stop_web(self) -> None:
        if self.metrics_port:
            self._web.close()

    def _state(self) -> State:
        if self._closing.is_set():
            return "draining"
        return "serving" if self._health.serving else "starting"

    def _reap(self) -> None:
        while not self._closing.wait(min(1.0, self.config.lease_s / 4)):
            self.actor.reap(self._authority.knows)
            self._same_host.shut_out(self._authority.knows)
