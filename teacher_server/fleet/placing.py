"""What a cluster keeps for each replica, and how many it has room for; values alone, knows no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from teacher_server.config import ServerConfig
from teacher_server.fleet.settings import FleetSettings
from teacher_server.models.spreading import MAPS, Spread
from teaching_protocol.errors import ConfigError

__all__ = ["Needs", "check_room", "counted", "needs_of"]


@dataclass(frozen=True)
class Needs:
    """CPUs and GPUs of one replica, all on one machine."""

    cpus: float
    gpus: float

    def fit(self, room: Mapping[str, float]) -> int | None:
        """How many find room, by sums over the cluster; None where they want nothing."""
        asked = ((self.cpus, room["CPU"]), (self.gpus, room["GPU"]))
        found = [int((there + 1e-6) // each) for each, there in asked if each > 0]
        return min(found) if found else None

    def __str__(self) -> str:
        return counted({"CPU": self.cpus, "GPU": self.gpus})


def counted(room: Mapping[str, float]) -> str:
    """Such as `2 CPUs and 1 GPU`."""
    return " and ".join(f"{room[name]:g} {name}{'' if room[name] == 1 else 's'}" for name in ("CPU", "GPU"))


def needs_of(config: ServerConfig, settings: FleetSettings, gpus_there: float) -> Needs:
    """What each replica of a fleet is given.

    Args:
        config: of each server: a split one has a GPU for each process, one with a device map those that it names.
        settings: of the fleet; `gpus`, where given, rules.
        gpus_there: of the cluster, now.

    Raises:
        ConfigError: GPUs that do not fit what the server is told.
    """
    if config.device.startswith("cuda:"):
        raise ConfigError(
            f"device: received {config.device!r} in a fleet, expected cuda or auto: a teacher sees its own GPUs alone, from 0 on"
        )
    least = _used(config)
    if settings.gpus is None:
        if config.device_map in MAPS and not config.device_memory and gpus_there >= 1:
            raise ConfigError(
                f"device_map: received {config.device_map!r} and nothing about how many GPUs each teacher spreads over; say --gpus N, or "
                "what each GPU may hold (device_memory)"
            )
        is_mapped = config.device_map is not None
        wants = config.device == "cuda" or (is_mapped and least) or (config.device == "auto" and gpus_there >= 1)
        return Needs(settings.cpus, float(least if is_mapped else max(1, least)) if wants else 0.0)
    given = settings.gpus
    if given > 1 and given != int(given):
        raise ConfigError(f"gpus: received {given:g}, expected a part of one GPU, or a whole number")
    if config.device == "cuda" and given == 0:
        raise ConfigError("gpus: received 0 with device cuda, expected some; Ray hides GPUs from who asks for none")
    if (given or config.device_map is not None) and given < least and config.device != "cpu":
        raise ConfigError(
            f"gpus: received {given:g}, expected {least} or more: each teacher has "
            + (f"tensor_parallel {least}" if config.tensor_parallel > 1 else f"a device map over GPUs 0 to {least - 1}")
        )
    return Needs(settings.cpus, given)


def check_room(needs: Needs, replicas: int, room: Mapping[str, float]) -> None:
    """Whether so many replicas fit a cluster that will not grow.

    Raises:
        ConfigError: they do not.
    """
    fit = needs.fit(room)
    if fit is not None and fit < replicas:
        raise ConfigError(
            f"replicas: received {replicas}, and each wants {needs}, but Ray on this machine has {counted(room)}: room for {fit}; "
            "start fewer, or give each less (--cpus, --gpus; parts of one are allowed)"
        )


def _used(config: ServerConfig) -> int:
    """GPUs that a server is told to use, beside the first that any takes; 0 where it is not said."""
    if config.device_map is None:
        return config.tensor_parallel if config.tensor_parallel > 1 else 0
    spread = Spread(config.device_map, config.device_memory)
    named = spread.limits() if config.device_map in MAPS else {}
    mapped = spread.map()
    devices = [*named, *([] if isinstance(mapped, str) else mapped.values())]
    return max((number + 1 for number in devices if isinstance(number, int)), default=0)
