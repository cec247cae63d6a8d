"""Kept graphs and their byte budget; knows what a graph weighs, not what it computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from teacher_server.metrics.metrics import Metrics
from teacher_server.models.sharding import local_part

__all__ = ["Cohort", "GraphCache", "GraphWeight", "Key", "Member", "storage_place", "weigh_graph"]

Key = tuple[str, str]  # session id, call id


@dataclass(frozen=True, eq=False)
class Member:
    """One call's ends of a shared graph: from its `leaves` to its `outputs`, over so many of the batch's rows."""

    leaves: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]
    rows: int


@dataclass(frozen=True, eq=False)
class Cohort:
    """Calls that ran as one batch and share one autograd graph of `rows` rows; `members` are those still to come."""

    members: dict[Key, Member]
    rows: int
    size_bytes: int

    def share_bytes(self, key: Key) -> int:
        """What of the graph is counted as one member's."""
        return self.size_bytes * self.members[key].rows // max(1, self.rows)

    def pays_for(self, keys: Iterable[Key]) -> bool:
        """Whether one backward through the whole graph costs no more than to run these calls again.

        Backward costs about as much as forward, so a graph of n rows costs n, and k rows run again cost 2 k.
        """
        return 2 * sum(self.members[key].rows for key in keys) >= self.rows


@dataclass
class GraphWeight:
    """Bytes that autograd keeps alive for a graph, weights not counted."""

    size_bytes: int = 0


@contextmanager
def weigh_graph(weights: Iterable[int], place_of: Callable[[torch.Tensor], int] | None = None) -> Iterator[GraphWeight]:
    """Counts the bytes saved for backward inside, each storage once.

    Args:
        weights: `storage_place` of the tensors that live anyhow and are not counted.
        place_of: what tells storages apart, where tensors have no memory; None is `storage_place`.
    """
    place_of = place_of or storage_place
    weight = GraphWeight()
    seen = set(weights)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = place_of(tensor)
        if place not in seen:
            seen.add(place)
            weight.size_bytes += local_part(tensor).untyped_storage().nbytes()
        return tensor.detach()  # holds no reference to the graph it is saved in

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield weight


def storage_place(tensor: torch.Tensor) -> int:
    """Where the tensor's memory begins: of one that is split over processes, the part in this one."""
    return local_part(tensor).untyped_storage().data_ptr()


class GraphCache:
    """Graphs kept from Forward to Backward, least recently made go first.

    A graph serves one backward: the first that holds at least half of its rows. A call that comes without the others,
    or after them, runs its Forward again; so a graph in which less than half of the rows are still to come is of no
    use and goes at once. One over a budget is not an error: its Backwards run their Forwards again.
    """

    def __init__(self, budget_bytes: int, session_bytes: int, metrics: Metrics) -> None:
        self._budget_bytes = budget_bytes
        self._session_bytes = session_bytes
        self._metrics = metrics
        self._lock = threading.Lock()
        self._kept: dict[Key, Cohort] = {}  # in the order in which they were made
        self._size_bytes = 0
        metrics.graph_limit.set(budget_bytes)

    @property
    def size_bytes(self) -> int:
        """Bytes of all graphs kept, a shared one counted once."""
        return self._size_bytes

    def put(self, cohort: Cohort) -> None:
        """Keeps a graph, letting go of older ones of its sessions, then of anybody's.

        A session is charged its share of a graph by rows; the server's budget counts a graph once.
        """
        with self._lock:
            self._kept |= dict.fromkeys(cohort.members, cohort)
            self._size_bytes += cohort.size_bytes if cohort.members else 0
            self._let_go_if_useless(cohort)
            for session_id in {session_id for session_id, _ in cohort.members}:
                self._shrink_session(session_id)
            while self._size_bytes > self._budget_bytes:
                self._let_go(next(iter(self._kept.values())))
            self._report()

    def take(self, keys: Sequence[Key]) -> list[Cohort]:
        """Hands over, for its one backward, each kept graph that pays for those of these calls that are in it.

        Its `members` are then these calls alone; the others of the graph, and these calls of a graph that does not pay,
        have none any more.
        """
        with self._lock:
            found = {id(self._kept[key]): self._kept[key] for key in keys if key in self._kept}
            taken = []
            for cohort in found.values():
                here = [key for key in keys if key in cohort.members]
                if cohort.pays_for(here):
                    self._hand_over(cohort, here)
                    taken.append(cohort)
                else:
                    self._drop(here)
            self._report()
        self._metrics.graph_hits.inc(sum(len(cohort.members) for cohort in taken))
        return taken

    def drop_call(self, key: Key) -> None:
        """Lets go of one call's end of a graph, if it is kept."""
        with self._lock:
            self._drop([key])
            self._report()

    def drop(self, session_id: str) -> None:
        """Lets go of all that is kept for a session."""
        with self._lock:
            self._drop([key for key in self._kept if key[0] == session_id])
            self._report()

    def clear(self) -> None:
        """Lets go of everything: the device ran out of memory."""
        with self._lock:
            while self._kept:
                self._let_go(next(iter(self._kept.values())))
            self._report()

    def _hand_over(self, cohort: Cohort, keys: Sequence[Key]) -> None:
        self._size_bytes -= cohort.size_bytes
        for key in list(cohort.members):
            del self._kept[key]
            if key not in keys:
                del cohort.members[key]
                self._metrics.graph_evictions.inc()

    def _drop(self, keys: Iterable[Key]) -> None:
        for key in keys:
            cohort = self._kept.pop(key, None)
            if cohort is not None:
                del cohort.members[key]
                self._size_bytes -= 0 if cohort.members else cohort.size_bytes
                self._let_go_if_useless(cohort)

    def _let_go_if_useless(self, cohort: Cohort) -> None:
        if cohort.members and not cohort.pays_for(cohort.members):
            self._let_go(cohort)

    def _let_go(self, cohort: Cohort) -> None:
        self._metrics.graph_evictions.inc(len(cohort.members))
        for key in cohort.members:
            del self._kept[key]
        cohort.members.clear()
        self._size_bytes -= cohort.size_bytes

    def _shrink_session(self, session_id: str) -> None:
        mine = [key for key in self._kept if key[0] == session_id]
        held = sum(self._kept[key].share_bytes(key) for key in mine)
        for key in mine:
            if held <= self._session_bytes:
                return
            if key in self._kept:
                held -= self._kept[key].share_bytes(key)
                self._metrics.graph_evictions.inc()
                self._drop([key])

    def _report(self) -> None:
        self._metrics.graph_bytes.set(self._size_bytes)
