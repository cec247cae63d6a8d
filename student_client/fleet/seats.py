"""The cores of a machine shared out among students that train at once: a pure choice; sets nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from teaching_protocol.errors import ConfigError

__all__ = ["Seat", "seats"]


@dataclass(frozen=True)
class Seat:
    """Where one student at a time trains: its number, the cores it may run on, and the threads it computes with."""

    number: int
    cores: tuple[int, ...]
    threads: int


def seats(cores: Collection[int], at_once: int, free: int = 0, threads: int = 0, pin: bool = True) -> list[Seat]:
    """One seat for each student that trains at the same time.

    Where there is a core for each, the cores are dealt out evenly and belong to one seat; where there is not, or `pin` is
    false, all seats share all of them, and the system moves students to whichever is idle.

    Args:
        cores: those this process may use.
        at_once: number of seats; 0 is one for each core that is not left free.
        free: cores that no seat has, the lowest ones.
        threads: of each seat; 0 is its even part of the cores, at least one.
        pin: whether seats have cores of their own.

    Raises:
        ConfigError: no core is left.
    """
    usable = sorted(cores)[free:]
    if not usable:
        raise ConfigError(f"free_cores: received {free}, expected fewer than the {len(cores)} cores of this process")
    count = at_once or len(usable)
    own = pin and count <= len(usable)
    found = []
    for number in range(count):
        first, last = number * len(usable) // count, (number + 1) * len(usable) // count
        dealt = tuple(usable[first:last]) if own else tuple(usable)
        found.append(Seat(number, dealt, threads or max(1, last - first)))
    return found
