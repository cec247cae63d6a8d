"""Kept graphs and their byte budget; knows what a graph weighs, not what it computes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from teacher_server.metrics import Metrics

__all__ = ["Cohort", "GraphCache", "GraphWeight", "storage_place", "weigh_graph"]

Key = tuple[str, str]  # session id, call id


@dataclass(frozen=True)
class Cohort:
    """Calls that ran as one batch and share one autograd graph, from `leaves` to `outputs`."""

    members: tuple[Key, ...]
    leaves: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]
    size_bytes: int


@dataclass
class GraphWeight:
    """Bytes that autograd keeps alive for a graph, weights not counted."""

    size_bytes: int = 0


@contextmanager
def weigh_graph(weights: Iterable[int]) -> Iterator[GraphWeight]:
    """Counts the bytes saved for backward inside, each storage once.

    Args:
        weights: `storage_place` of the tensors that live anyhow and are not counted.
    """
    weight = GraphWeight()
    seen = set(weights)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = storage_place(tensor)
        if place not in seen:
            seen.add(place)
            weight.size_bytes += tensor.untyped_storage().nbytes()
        return tensor.detach()  # holds no reference to the graph it is saved in

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield weight


def storage_place(tensor: torch.Tensor) -> int:
    """Where the tensor's memory begins."""
    return tensor.untyped_storage().data_ptr()


class GraphCache:
    """Graphs kept from Forward to Backward, least recently made go first.

    A graph over a budget is not an error: its Backward runs the Forward again.
    """

    def __init__(self, budget_bytes: int, session_bytes: int, metrics: Metrics) -> None:
        self._budget_bytes = budget_bytes
        self._session_bytes = session_bytes
        self._metrics = metrics
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Cohort] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """Bytes of all graphs kept."""
        return sum(cohort.size_bytes for cohort in self._kept.values())

    def put(self, key: Key, cohort: Cohort) -> None:
        """Keeps a graph, letting go of older ones of its session, then of anybody's."""
        with self._lock:
            self._kept[key] = cohort
            self._shrink([k for k in self._kept if k[0] == key[0]], self._session_bytes)
            self._shrink(list(self._kept), self._budget_bytes)
            self._report()

    def take(self, key: Key) -> Cohort | None:
        """Hands a kept graph over for its one backward, or None when it is gone."""
        with self._lock:
            cohort = self._kept.pop(key, None)
            self._report()
        if cohort is not None:
            self._metrics.graph_hits.inc()
        return cohort

    def drop_call(self, key: Key) -> None:
        """Lets go of one graph, if it is kept."""
        with self._lock:
            self._kept.pop(key, None)
            self._report()

    def drop(self, session_id: str) -> None:
        """Lets go of all graphs of a session."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == session_id]:
                del self._kept[key]
            self._report()

    def clear(self) -> None:
        """Lets go of everything: the device ran out of memory."""
        with self._lock:
            self._metrics.graph_evictions.inc(len(self._kept))
            self._kept.clear()
            self._report()

    def _shrink(self, keys: list[Key], budget_bytes: int) -> None:
        held = sum(self._kept[key].size_bytes for key in keys)
        for key in keys:
            if held <= budget_bytes:
                return
            held -= self._kept.pop(key).size_bytes
            self._metrics.graph_evictions.inc()

    def _report(self) -> None:
        self._metrics.graph_bytes.set(self.size_bytes)
