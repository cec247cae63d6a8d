"""A fleet's replicas and their directory seen from the fleet's own process: begun on Ray, asked, told and killed; serves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from command_config.ray_cluster import RayCluster
from teacher_server.config import ServerConfig
from teacher_server.fleet.placing import Needs, counted
from teacher_server.fleet.ray_actors import CALL_S, DirectoryActor, ReplicaActor
from teacher_server.fleet.registry import Report
from teacher_server.fleet.settings import FleetSettings
from teaching_protocol.directory import Replica
from teaching_protocol.errors import ServiceError

__all__ = ["RayDirectory", "RayHosts", "RayWorker"]


class RayDirectory:
    """The fleet's directory actor, found by its name or begun.

    Args:
        cluster: where.
        settings: of the fleet.
        begin: whether it is begun where there is none.

    Raises:
        ServiceError: there is none.
    """

    def __init__(self, cluster: RayCluster, settings: FleetSettings, *, begin: bool = True) -> None:
        self._ray = cluster.ray
        name = f"{settings.name}-directory"
        try:
            if begin:
                # lives and dies with the fleet's own process, and starts again where it dies alone
                options = {"name": name, "num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}
                self.handle = self._ray.remote(DirectoryActor).options(**options).remote(settings.stale_s)
            else:
                self.handle = self._ray.get_actor(name)
        except ValueError as error:
            fault = "there is one already" if begin else "there is none"
            raise ServiceError(
                f"the fleet {settings.name!r}: {fault} in this Ray cluster; give the right --name"
            ) from error
        self._reports: dict[str, tuple[Report, float]] = {}
        self._asked: frozenset[str] = frozenset()
        self.listing: tuple[Replica, ...] = ()

    def refresh(self) -> None:
        """Asks for all of it; where the directory does not answer, what was known holds."""
        try:
            found = self._ray.get(self.handle.view.remote(), timeout=CALL_S)
        except self._ray.exceptions.RayError:
            return
        self._reports, self._asked, self.listing = found

    def reports(self) -> Mapping[str, tuple[Report, float]]:
        """Every last report and its age in seconds."""
        return self._reports

    def asked(self) -> frozenset[str]:
        """Replicas that somebody wants replaced."""
        return self._asked

    def forget(self, name: str) -> None:
        """Lets go of a replica that has ended."""
        self._reports.pop(name, None)
        self.handle.forget.remote(name)

    def ask_to_replace(self, name: str) -> bool:
        """Asks the fleet to drain a replica once another one serves; false for one that is not there."""
        return bool(self._ray.get(self.handle.ask_to_replace.remote(name), timeout=10 * CALL_S))


class RayHosts:
    """Places replicas on the cluster's nodes, spread out, each with its CPUs and GPUs.

    Args:
        cluster: where.
        directory: what they report to.
        config: of each server.
        settings: of the fleet.
        needs: what each is given.
    """

    def __init__(
        self,
        cluster: RayCluster,
        directory: RayDirectory,
        config: ServerConfig,
        settings: FleetSettings,
        needs: Needs,
    ) -> None:
        self._ray, self._cluster, self._directory = cluster.ray, cluster, directory
        self._config, self._settings, self._needs = config, settings, needs
        self._options = {
            "num_cpus": needs.cpus,
            "num_gpus": needs.gpus,
            "max_restarts": settings.max_restarts,
            "max_task_retries": 0,
            "max_concurrency": 4,  # it answers while it drains
            "scheduling_strategy": "SPREAD",
        }

    def begin(self, name: str) -> RayWorker:
        """Starts a replica; it serves when it reports."""
        actor = self._ray.remote(ReplicaActor).options(**self._options)
        return RayWorker(self._ray, actor.remote(name, self._config, self._settings, self._directory.handle))

    def lack(self) -> str:
        """What is missing for one more now, in words; empty where there is room."""
        try:
            free, there = self._cluster.room(free=True), self._cluster.room()
        except self._ray.exceptions.RayError:
            return ""  # who does not answer lacks something else
        if self._needs.fit(free) != 0:
            return ""
        return f"each wants {self._needs}, and of the cluster's {counted(there)} free are {counted(free)}"


class RayWorker:
    """One replica's actor as its supervisor sees it.

    Args:
        ray: the library.
        handle: of the actor.
    """

    def __init__(self, ray: Any, handle: Any) -> None:
        self._ray, self._handle = ray, handle
        self._alive = handle.alive.remote()
        self._drained: Any = None

    def ended(self) -> str | None:
        """Why it is over for good; empty after a drain; None while it runs or Ray starts it again."""
        if self._drained is not None:
            if not self._is_ready(self._drained):
                return None
            self.kill()
            return ""
        if not self._is_ready(self._alive):
            return None
        try:
            self._ray.get(self._alive)
        except self._ray.exceptions.ActorUnavailableError:
            pass  # it died, and is started again
        except self._ray.exceptions.RayActorError as error:
            return " ".join(str(error).split())[-600:]
        self._alive = self._handle.alive.remote()
        return None

    def drain(self) -> None:
        """Has it send its students elsewhere and end."""
        self._drained = self._handle.drain.remote()

    def kill(self) -> None:
        """Kills it for good; what runs no more is left as it is."""
        self._ray.kill(self._handle, no_restart=True)

    def _is_ready(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])
