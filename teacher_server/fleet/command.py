"""The commands `teacher-server fleet` and `teacher-server replace`: a fleet run until a signal, a replica of it replaced."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from command_config import Layers, setting
from command_config.completion import complete_fields
from command_config.line import Json
from teacher_server.config import ServerConfig, effective_config
from teacher_server.flags import ConfigFile, Deterministic, Model, Settings
from teacher_server.fleet.settings import FleetSettings
from teaching_protocol.errors import ConfigError

if TYPE_CHECKING:
    from teacher_server.fleet.on_ray import RayDirectory
    from teacher_server.fleet.port import DirectoryPort
    from teacher_server.fleet.registry import Report
    from teacher_server.fleet.scaling import Bounds
    from teacher_server.fleet.supervisor import Supervisor

__all__ = ["fleet", "replace"]

_log = logging.getLogger(__name__)

_TURN_S, _END_MORE_S = 0.25, 10.0

Name = Annotated[str | None, typer.Option("--name", help="What the fleet is called; teachers by default.")]
Ray = Annotated[str | None, typer.Option("--ray", help="Address of a Ray cluster, or auto; else Ray is started here.")]
FleetSet = Annotated[
    list[str] | None,
    typer.Option(
        "--fleet-set",
        help="Any field of the fleet, as up_queue_s=1; may be repeated.",
        autocompletion=complete_fields(FleetSettings),
    ),
]


def fleet(
    replicas: Annotated[int | None, typer.Option(help="Teachers at the start; 2 by default.")] = None,
    model: Model = None,
    config: ConfigFile = None,
    least: Annotated[
        int | None, typer.Option("--min", help="Fewest teachers; as many as at the start by default.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", help="Most teachers; as many as at the start by default.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address that directory and teachers bind; loopback by default.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port of the directory; 0 takes a free one.")] = None,
    ray: Ray = None,
    name: Name = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs that Ray keeps for each teacher.")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs for each; by default one, or what it is split over.")] = None,
    targets: Annotated[Path | None, typer.Option(help="File with the metrics ports, for Prometheus.")] = None,
    deterministic: Deterministic = None,
    settings: Settings = None,
    fleet_settings: FleetSet = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say where it serves as one JSON object.")] = False,
) -> None:
    """Serves several replicas of one teacher under Ray; SIGTERM or Ctrl-C drains them all, a second one kills them.

    Students name one address, that of the directory; each is placed at a replica and moves by itself.
    """
    from teacher_server.logs import start_log  # here: help and completion need no torch

    given = {"model": model, "host": host, "deterministic": deterministic}
    given |= dict(setting(each, "permits=512") for each in settings or ())
    found = effective_config(config, os.environ, given).config
    if found.host != "127.0.0.1" and host is None:
        host = found.host
    flags: dict[str, Any] = {
        "replicas": replicas,
        "least": least,
        "most": most,
        "host": host,
        "port": port,
        "ray": ray,
        "name": name,
    }
    flags |= {"cpus": cpus, "gpus": gpus, "targets": targets}
    chosen = read_settings(flags, fleet_settings)
    start_log(found.log_json, found.log_level)
    raise typer.Exit(_run(found, chosen, as_json))


def replace(
    replica: Annotated[str, typer.Argument(help="Its name, as replica-1.")],
    ray: Ray = None,
    name: Name = None,
    as_json: Json = False,
) -> None:
    """Replaces a replica of a running fleet: a new one serves first, then the old one is drained; no step is lost."""
    from command_config.ray_cluster import RayCluster
    from teacher_server.fleet.on_ray import RayDirectory

    chosen = read_settings({"ray": ray, "name": name}, None)
    with RayCluster(chosen.ray or "auto", chosen.name) as cluster:
        if not RayDirectory(cluster, chosen, begin=False).ask_to_replace(replica):
            raise ConfigError(f"replica: received {replica!r}, which has not reported to the fleet {chosen.name!r}")
    told = {"fleet": chosen.name, "replaces": replica}
    typer.echo(json.dumps(told) if as_json else f"{replica} will be replaced")


def read_settings(flags: dict[str, Any], settings: Sequence[str] | None) -> FleetSettings:
    """The fleet's settings from flags; None where one was not given.

    Raises:
        ConfigError: an unknown field or a value out of range.
    """
    given = {field: value for field, value in flags.items() if value is not None}
    given |= dict(setting(each, "up_queue_s=1") for each in settings or ())
    return Layers().dotted(given, "flag").validate(FleetSettings).config


def _run(config: ServerConfig, settings: FleetSettings, as_json: bool) -> int:
    """Runs a fleet until a signal; gives the exit code."""
    from command_config.ray_cluster import RayCluster
    from teacher_server.fleet.on_ray import RayDirectory, RayHosts
    from teacher_server.fleet.placing import check_room, needs_of
    from teacher_server.fleet.port import DirectoryPort
    from teacher_server.fleet.scaling import Scaling
    from teacher_server.fleet.supervisor import Limits, Supervisor

    ending = threading.Event()
    ports = config.model_copy(update={"host": settings.host, "port": settings.port, "metrics_port": -1})
    with RayCluster(settings.ray, settings.name) as cluster:
        _end_by_signal(ending)  # after Ray has set handlers of its own
        needs = needs_of(config, settings, cluster.room()["GPU"])
        if cluster.is_own:  # others may grow
            check_room(needs, settings.replicas, cluster.room())
        directory = RayDirectory(cluster, settings)
        hosts = RayHosts(cluster, directory, config, settings, needs)
        limits = Limits(settings.stale_s, settings.hung_s, settings.room_s)
        supervisor = Supervisor(hosts, directory, Scaling(_bounds(settings), settings.replicas), limits, _log.info)
        with DirectoryPort(ports, lambda: directory.listing) as port, _metrics(supervisor, config, settings) as metrics:
            try:
                _keep(supervisor, directory, port, settings, ending, as_json, metrics)
            finally:
                limit_s = config.drain_s + config.handoff_s + _END_MORE_S
                supervisor.end(limit_s)
    return 0


def _bounds(settings: FleetSettings) -> Bounds:
    from teacher_server.fleet.scaling import Bounds

    least, most = settings.bounds
    return Bounds(least, most, settings.up_queue_s, settings.down_queue_s, settings.up_after_s, settings.down_after_s)


def _metrics(supervisor: Supervisor, config: ServerConfig, settings: FleetSettings) -> AbstractContextManager[str]:
    """The fleet's own metrics, at a port; gives its address."""
    from teacher_server.fleet.metrics import FleetFacts, FleetMetrics, serving_metrics

    metrics = FleetMetrics(lambda: FleetFacts(supervisor.counts, supervisor.losses, supervisor.given_up))
    return serving_metrics(metrics, config.metrics_host, settings.metrics_port)


def _keep(
    supervisor: Supervisor,
    directory: RayDirectory,
    port: DirectoryPort,
    settings: FleetSettings,
    ending: threading.Event,
    as_json: bool,
    metrics: str,
) -> None:
    said = False
    told: tuple[str, ...] = ()
    while not ending.wait(_TURN_S):
        directory.refresh()
        supervisor.turn()
        port.serving(is_complete=bool(supervisor.serving))
        there = tuple(each.metrics for each in supervisor.serving)
        if settings.targets is not None and there != told:
            told = there
            _write_targets(settings.targets, supervisor.serving, metrics)
        if supervisor.has_settled and not said:
            said = True
            # one line for whoever started this process: where to ask
            address, count = f"{settings.host}:{port.port}", len(supervisor.serving)
            places = {"serving": address, "replicas": count, "metrics": metrics}
            typer.echo(json.dumps(places) if as_json else f"serving {address} replicas {count}")
            sys.stdout.flush()


def _write_targets(path: Path, serving: Sequence[Report], own: str) -> None:
    """What Prometheus' file_sd_configs reads, the fleet's own metrics first; put in its place whole."""
    named = [("fleet", own), *((each.name, each.metrics) for each in serving)]
    found = [{"targets": [metrics], "labels": {"replica": name}} for name, metrics in named if metrics]
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def _end_by_signal(ending: threading.Event) -> None:
    def stop(number: int, frame: Any) -> None:
        signal.signal(number, lambda *_: os._exit(1))
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
