"""Where a run's cuts are kept: the newest in memory, to go back to, checkpoints on disk; knows no student and no teacher."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from student_client.ranks import Ranks
from student_client.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint

__all__ = ["Held", "Keeping"]


class Keeping:
    """The cuts of one run.

    Args:
        folder: of the checkpoints.
        identity: what a resumed run must share (`RunConfig.identity`).
        held: memory for the newest cut.
        ranks: of the student. Each holds a cut of its own; rank 0 writes, for all, and all read.

    Attributes:
        step: that of the cut to go back to; -1 before there is one.
        saved_step: that of the newest checkpoint; -1 before there is one.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], held: Held, ranks: Ranks | None = None) -> None:
        self._ranks = ranks or Ranks()
        self.step = self.saved_step = -1
        self._folder, self._identity, self._held = folder, identity, held
        self._newest: Checkpoint | None = None

    def keep(self, cut: Checkpoint) -> Checkpoint:
        """Makes a cut the one to go back to: in memory, or as a checkpoint where memory is too small for it.

        Raises:
            ConfigError: it has to go to the disk, and cannot be written.
        """
        self._newest, self.step = self._held.hold(cut), cut.step
        if any(self._ranks.gather(self._newest is None)):
            self._newest = None
            self.write(cut)
        return self.newest()

    def newest(self) -> Checkpoint:
        """The cut to go back to."""
        return self._newest or self.load()

    def write(self, cut: Checkpoint) -> None:
        """Writes a cut as a checkpoint, unless its step has one.

        Raises:
            ConfigError: it cannot be written; those before it are whole.
        """
        if self.saved_step != cut.step:
            whole = self._with_all_random(cut)
            self._ranks.only_first(lambda: save_checkpoint(self._folder, whole), self._folder)
            self.saved_step = cut.step

    def load(self) -> Checkpoint:
        """The newest whole checkpoint; errors as of `load_checkpoint`."""
        found = load_checkpoint(self._folder, self._identity)
        self.saved_step = found.step
        return self._with_own_random(found)

    def _with_all_random(self, cut: Checkpoint) -> Checkpoint:
        """The cut with the random state of every rank, those of the others as `rank<n>.<generator>`."""
        if self._ranks.count == 1:
            return cut
        own = {
            name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in cut.tensors["random"].items()
        }
        random: dict[str, torch.Tensor] = {}
        for rank, states in enumerate(self._ranks.gather(own)):
            for name, state in states.items():
                value = torch.frombuffer(bytearray(base64.b64decode(state)), dtype=torch.uint8)
                random[f"rank{rank}.{name}" if rank else name] = value
        return replace(cut, tensors={**cut.tensors, "random": random})

    def _with_own_random(self, cut: Checkpoint) -> Checkpoint:
        if self._ranks.is_first:
            return cut
        prefix, states = f"rank{self._ranks.rank}.", cut.tensors["random"]
        own = {name.removeprefix(prefix): state for name, state in states.items() if name.startswith(prefix)}
        return replace(cut, tensors={**cut.tensors, "random": own or states})


class Held:
    """Room in memory for two cuts: the newest, and the next one while it is copied.

    Args:
        budget_bytes: for both.
        pinned: whether the memory is pinned, for tensors that come from a GPU.
    """

    def __init__(self, budget_bytes: int, pinned: bool) -> None:
        self._budget_bytes, self._pinned = budget_bytes, pinned
        self._rooms: list[dict[tuple[str, str], torch.Tensor]] = [{}, {}]

    def hold(self, cut: Checkpoint) -> Checkpoint | None:
        """A copy of a cut in memory; the one held before it stays whole. None where it would not fit."""
        size_bytes = sum(map(len, cut.sessions))
        size_bytes += sum(tensor.nbytes for tensors in cut.tensors.values() for tensor in tensors.values())
        if 2 * size_bytes > self._budget_bytes:
            return None
        self._rooms.reverse()
        room, self._rooms[0] = self._rooms[0], {}
        tensors = {
            group: {name: self._copy(room.get((group, name)), group, name, value) for name, value in each.items()}
            for group, each in cut.tensors.items()
        }
        return replace(cut, tensors=tensors)

    def _copy(self, room: torch.Tensor | None, group: str, name: str, value: torch.Tensor) -> torch.Tensor:
        if room is None or room.shape != value.shape or room.dtype != value.dtype:
            room = torch.empty(value.shape, dtype=value.dtype, pin_memory=self._pinned)
        self._rooms[0][group, name] = room
        return room.copy_(value.detach())
