"""The processes (ranks) that train one student: what they tell each other, and that what fails for one fails for all; knows no teacher.

Every word between them is one collective: a note of each rank to all, which says too whether the rank has failed. A rank that fails
tells it in its next note; the others hear it in theirs, whatever they were about to share, and raise the same error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from teaching_protocol.errors import ERRORS, ConfigError, RankLost, ServiceError, SessionNotFound

__all__ = ["Ranks", "in_group", "joined"]

T = TypeVar("T")

_LOSSES = (ServiceError, SessionNotFound)
"""What a run may recover from; anything else weighs more, where ranks fail differently."""
_SPARE_S = 60.0
_HEAD_BYTES = 8
_NOTE_BYTES = 504  # what is sent in one go with its length; a longer note takes a second one


class Ranks:
    """One rank's end of the group; a process alone is rank 0 of 1, and tells nobody anything.

    Args:
        rank: of this process, 0 to `count` - 1.
        count: of processes.
        group: for notes, on the CPU; gradients go through torch's default group.
        wait_s: seconds one waits for the others between two steps of the work.
        patient_s: seconds the others wait for what rank 0 alone does and may take long.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, group: Any = None, wait_s: float = 300.0, patient_s: float = 600.0
    ) -> None:
        self.rank, self.count = rank, count
        self._group, self._wait_s, self._patient_s = group, wait_s, patient_s
        self._known: Exception | None = None
        self._lost: RankLost | None = None

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and logs, validates, and opens the session."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """What goes wrong for one rank inside goes wrong for all, at the end of the `with` at the latest.

        Raises:
            TeachingError: of the rank that failed; RankLost where it cannot be told, or a rank does not answer.
        """
        try:
            yield
        except Exception as error:
            if error is not self._known:
                self._share({}, error)
            raise
        self.hear()

    def hear(self) -> None:
        """Raises what has gone wrong for another rank meanwhile; a point that all ranks pass together."""
        self._share({})

    def first(self, job: Callable[[], T]) -> T:
        """What rank 0 makes of a job, for all ranks; JSON values. The others wait, patiently."""
        found, error = self._done(job)
        notes = self._share({"value": found}, error, self._patient_s)
        return found if self.is_first or self.count == 1 else notes[0]["value"]  # type: ignore[return-value]

    def only_first(self, job: Callable[[], T], otherwise: T) -> T:
        """What rank 0 makes of a job, for itself; the others get `otherwise` once it is done."""
        found, error = self._done(job)
        self._share({}, error, self._patient_s)
        return otherwise if found is None else found

    def gather(self, value: Any) -> list[Any]:
        """A JSON value of each rank, by rank."""
        return [value] if self.count == 1 else [note["value"] for note in self._share({"value": value})]

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each number over the ranks that have it."""
        if self.count == 1:
            return dict(values)
        all_of_them = self.gather(dict(values))
        found: dict[str, list[float]] = {}
        for each in all_of_them:
            for name, value in each.items():
                found.setdefault(name, []).append(value)
        return {name: sum(each) / len(each) for name, each in found.items()}

    def average(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        """Puts the ranks' gradients, each times its share, in sum in the place of this rank's; the same bits at every rank.

        A parameter that has a gradient at no rank stays without.

        Args:
            parameters: the same at every rank.
            share: of this rank; those of all sum up to 1. With 0 its gradients are not looked at.
        """
        if self.count == 1 or not parameters:
            return
        has = parameters[0].new_tensor([float(bool(share) and each.grad is not None) for each in parameters])
        parts = [_part(each, share) for each in parameters]
        flat = torch.cat([*parts, has])
        self._wait(lambda: dist.all_reduce(flat, async_op=True), self._wait_s)
        anywhere = flat[-len(parameters) :].tolist()
        sums = torch.split(flat[: -len(parameters)], [each.numel() for each in parameters])
        for parameter, total, count in zip(parameters, sums, anywhere, strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype) if count else None

    def align(self, modules: Iterable[nn.Module]) -> None:
        """Gives every rank rank 0's weights and buffers."""
        if self.count == 1:
            return
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self._wait(partial(dist.broadcast, value := tensor.detach().clone(), 0, async_op=True), self._wait_s)
                tensor.data.copy_(value)

    def _done(self, job: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """What rank 0 makes of a job, and what went wrong; alone, it goes wrong at once."""
        if self.count == 1:
            return job(), None
        try:
            return (job() if self.is_first else None), None
        except Exception as error:
            return None, error

    def _share(self, note: dict[str, Any], error: Exception | None = None, wait_s: float = 0.0) -> list[dict[str, Any]]:
        """Every rank's note, by rank, or the gravest error that a rank tells of."""
        if self.count == 1:
            if error is not None:
                raise error
            return [note]
        if error is not None:
            note = {"error": type(error).__name__, "text": str(error)}
        try:
            notes = self._notes(json.dumps(note).encode(), wait_s or self._wait_s)
        except RankLost as lost:
            if error is None:
                raise
            error.add_note(str(lost))
            self._known = error
            raise error from lost
        failed = [(rank, each) for rank, each in enumerate(notes) if "error" in each]
        if failed:
            self._raise(failed, error)
        return notes

    def _raise(self, failed: Sequence[tuple[int, Mapping[str, str]]], own: Exception | None) -> None:
        """Raises the same at every rank: its own where it is this one's."""
        grave = [each for each in failed if not issubclass(ERRORS.get(each[1]["error"], Exception), _LOSSES)]
        rank, note = (grave or list(failed))[0]
        if rank == self.rank and own is not None:
            self._known = own
            raise own
        kind = ERRORS.get(note["error"])
        text = note["text"] if kind is not None else f"{note['error']}: {note['text']}"
        self._known = (kind or RankLost)(f"rank {rank} of {self.count}: {text}")
        raise self._known from own

    def _notes(self, data: bytes, wait_s: float) -> list[dict[str, Any]]:
        sizes_and_heads = self._all(_padded(len(data).to_bytes(_HEAD_BYTES) + data[:_NOTE_BYTES], 512), wait_s)
        sizes = [int.from_bytes(each[:_HEAD_BYTES]) for each in sizes_and_heads]
        if max(sizes) > _NOTE_BYTES:
            whole = self._all(_padded(data, max(sizes)), wait_s)
        else:
            whole = [each[_HEAD_BYTES:] for each in sizes_and_heads]
        return [json.loads(each[:size]) for each, size in zip(whole, sizes, strict=True)]

    def _all(self, mine: torch.Tensor, wait_s: float) -> list[bytes]:
        found = [torch.empty_like(mine) for _ in range(self.count)]
        self._wait(lambda: dist.all_gather(found, mine, group=self._group, async_op=True), wait_s)
        return [each.numpy().tobytes() for each in found]

    def _wait(self, start: Callable[[], Any], wait_s: float) -> None:
        """Waits for a collective, so long and no longer; once one has failed, no other is tried."""
        if self._lost is not None:
            raise self._lost
        try:
            start().wait(timedelta(seconds=wait_s))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            self._lost = self._known = RankLost(
                f"rank {self.rank} of {self.count} has lost another rank, or waited {wait_s:g} s for it ({reason}); look what "
                "became of it, and start all ranks again with --resume; raise training.rank_timeout_s if it was only slow"
            )
            raise self._lost from error


@contextmanager
def joined(wait_s: float, patience_s: float) -> Iterator[Ranks]:
    """The group that `torchrun` or `accelerate launch` has started this process in; alone without a launcher.

    Args:
        wait_s: seconds a rank waits for the others.
        patience_s: seconds that rank 0 may wait for a lost teacher, while the others wait for it.

    Raises:
        ConfigError: the ranks do not find each other.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count <= 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    rank, patient_s = int(os.environ["RANK"]), wait_s + patience_s
    limit = timedelta(seconds=patient_s + _SPARE_S)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(backend, timeout=limit)
        group = dist.new_group(backend="gloo", timeout=limit)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"received rank {rank} of {count} from the environment, but the ranks do not find each other ({error}); start all of "
            "them with torchrun or accelerate launch, or unset WORLD_SIZE"
        ) from error
    try:
        yield Ranks(rank, count, group, wait_s, patient_s)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def in_group(wait_s: float) -> Ranks:
    """The processes of the group that another library's loop has opened, which stays its own; all of them call this.

    Args:
        wait_s: seconds a process waits for the others.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Ranks()
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=wait_s + _SPARE_S))
    return Ranks(dist.get_rank(), dist.get_world_size(), group, wait_s, wait_s)


def _part(parameter: nn.Parameter, share: float) -> torch.Tensor:
    if not share or parameter.grad is None:
        return torch.zeros_like(parameter).flatten().detach()
    return parameter.grad.flatten() * share


def _padded(data: bytes, size: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(data.ljust(size, b"\0")), dtype=torch.uint8)
