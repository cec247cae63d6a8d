"""Student-independent outputs of the frozen teacher, kept row by row under the hash of the row.

Knows neither model nor student: whoever asks about the same example gets the same row.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch

from teacher_server.metrics.metrics import Metrics

__all__ = ["KnowledgeCache", "row_keys"]

Row = Mapping[str, torch.Tensor]


def row_keys(inputs: Mapping[str, torch.Tensor]) -> list[bytes]:
    """One hash a row of the teacher's own inputs [batch, ...], blind to trailing padding."""
    batch = len(next(iter(inputs.values())))
    digests = [hashlib.blake2b(digest_size=16) for _ in range(batch)]
    mask = inputs.get("attention_mask")
    for name in sorted(inputs):
        tensor = inputs[name].detach().cpu().contiguous()
        flat = tensor.reshape(batch, -1)
        lengths = _lengths(name, flat, mask)
        for row, digest in enumerate(digests):
            body = flat[row, : lengths[row]].contiguous()
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape[2:])}:{lengths[row]};".encode())
            digest.update(body.view(torch.uint8).numpy().data)
    return [digest.digest() for digest in digests]


def _lengths(name: str, flat: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
    if name == "text":
        real = flat != 0
    elif mask is not None and flat.shape == mask.shape:
        real = mask.cpu() != 0
    else:
        return [flat.shape[1]] * len(flat)
    places = torch.arange(1, flat.shape[1] + 1)
    return list((real * places).amax(1).tolist()) if flat.shape[1] else [0] * len(flat)


class KnowledgeCache:
    """Rows by (row hash, port), least recently used go first beyond the byte budget."""

    def __init__(self, budget_bytes: int, metrics: Metrics) -> None:
        self._budget_bytes = budget_bytes
        self._metrics = metrics
        self._lock = threading.Lock()
        self._size_bytes = 0
        self._rows: OrderedDict[tuple[bytes, str], torch.Tensor] = OrderedDict()
        metrics.knowledge_limit.set(budget_bytes)

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows kept."""
        return self._size_bytes

    def find(self, keys: Sequence[bytes], ports: Sequence[str], *, whole: bool = False) -> list[Row | None]:
        """For each row all the ports asked for, or None when any of them is missing.

        With `whole` a batch with a missing row counts as no look-up: whoever computes it looks again.
        """
        with self._lock:
            found = [self._row(key, ports) for key in keys]
        hits = sum(row is not None for row in found)
        if whole and hits < len(found):
            return found
        self._metrics.knowledge_hits.inc(hits)
        self._metrics.knowledge_misses.inc(len(found) - hits)
        return found

    def keep(self, key: bytes, row: Row) -> None:
        """Keeps the ports of one row; the tensors must own their memory."""
        with self._lock:
            for port, tensor in row.items():
                old = self._rows.pop((key, port), None)
                self._size_bytes += tensor.nbytes - (old.nbytes if old is not None else 0)
                self._rows[key, port] = tensor
            while self._size_bytes > self._budget_bytes and self._rows:
                self._size_bytes -= self._rows.popitem(last=False)[1].nbytes
            self._metrics.knowledge_bytes.set(self._size_bytes)

    def _row(self, key: bytes, ports: Sequence[str]) -> Row | None:
        row = {}
        for port in ports:
            tensor = self._rows.get((key, port))
            if tensor is None:
                return None
            self._rows.move_to_end((key, port))
            row[port] = tensor
        return row
