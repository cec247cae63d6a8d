"""A fleet's replicas and their directory as Ray actors: what runs in the processes that Ray starts; knows no supervisor.

Nothing but reports, listings and commands passes through Ray: tensors go from student to teacher over gRPC.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from teacher_server.config import ServerConfig
from teacher_server.fleet.registry import Registry, Report
from teacher_server.fleet.settings import FleetSettings
from teaching_protocol.directory import Replica

__all__ = ["CALL_S", "DirectoryActor", "ReplicaActor"]

CALL_S = 2.0
"""Seconds that the directory has to answer in."""


class DirectoryActor:
    """The registry as a Ray actor. Started anew it is full again after one beat."""

    def __init__(self, stale_s: float) -> None:
        self._registry = Registry(stale_s)

    def report(self, report: Report) -> tuple[Replica, ...]:
        """Takes a replica's report; gives the listing."""
        return self._registry.take(report, time.monotonic())

    def view(self) -> tuple[dict[str, tuple[Report, float]], frozenset[str], tuple[Replica, ...]]:
        """Reports with their ages, who is to be replaced, the listing."""
        now = time.monotonic()
        return self._registry.reports(now), self._registry.asked, self._registry.listing(now)

    def ask_to_replace(self, name: str) -> bool:
        """See `Registry`."""
        return self._registry.ask_to_replace(name)

    def forget(self, name: str) -> None:
        """See `Registry`."""
        self._registry.forget(name)


class ReplicaActor:
    """One teacher in a process that Ray places, and starts again when it dies: its constructor serves.

    Its first word, that it has its place, comes before torch and the model, which take long.
    """

    def __init__(self, name: str, config: ServerConfig, settings: FleetSettings, directory: Any) -> None:
        import ray  # Ray runs this: it is there

        def exchange(report: Report) -> tuple[Replica, ...]:
            found: tuple[Replica, ...] = ray.get(directory.report.remote(report), timeout=CALL_S)
            return found

        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        with suppress(ray.exceptions.RayError):  # then its first word is that it serves
            exchange(Report(name, "", "", os.getpid(), "starting", gpus=gpus))
        self._drain = _serve(name, config, settings, exchange, gpus)

    def alive(self) -> None:
        """Answers, once it serves."""

    def drain(self) -> None:
        """Returns when its students have gone elsewhere."""
        self._drain()


def _serve(
    name: str,
    config: ServerConfig,
    settings: FleetSettings,
    exchange: Callable[[Report], tuple[Replica, ...]],
    gpus: str,
) -> Callable[[], None]:
    """Serves the teacher; gives what drains it."""
    import ray
    import torch

    from teacher_server.fleet.replica import FleetTeacher
    from teacher_server.logs import start_log
    from teacher_server.security.tls import is_loopback

    start_log(config.log_json, config.log_level)
    threads = config.threads or torch.get_num_threads()
    torch.set_num_threads(1)  # the engine's is the only team of threads
    host = "127.0.0.1" if is_loopback(config.host) else str(ray.util.get_node_ip_address())
    config = config.model_copy(update={"threads": threads})
    return FleetTeacher(name, config, host, exchange, settings.beat_s, gpus).start().drain
