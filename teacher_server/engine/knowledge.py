"""What the frozen teacher knows about raw inputs, computed once a row and kept; knows no student."""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from teacher_server.engine.knowledge_cache import KnowledgeCache, Row, row_keys
from teacher_server.engine.transfers import Transfers
from teacher_server.engine.vocabulary import is_likeliest, likeliest
from teacher_server.families import segment_means
from teacher_server.models.split import FrozenTeacher

__all__ = ["MASK", "Knowledge", "LookUp", "stack_rows", "top"]

MASK = "attention_mask"
"""The port that says which of the teacher's own tokens are real (text only)."""

_ALL = sys.maxsize
_LAST = "last_hidden_state"

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LookUp:
    """What is known of one call's rows; `missing` has, by place, a prepared row for each that is None."""

    ports: tuple[str, ...]
    keys: Sequence[bytes]
    rows: Sequence[Row | None]
    missing: Mapping[int, Tensors]


class Knowledge:
    """The teacher's states, logits and pooled vector on raw inputs, through the cache.

    Missing rows are computed `batch_rows` at a time, and what is small and comes with the same pass over the layers is
    kept with them: another method's ports on the same row then cost no pass of their own. With 1, no row is padded and
    nothing else is computed, so that its bits depend on the row and on nothing else (deterministic mode).
    """

    def __init__(
        self, teacher: FrozenTeacher, cache: KnowledgeCache, transfers: Transfers, *, batch_rows: int, max_tokens: int
    ) -> None:
        self._teacher = teacher
        self._transfers = transfers
        self._cache = cache
        self._batch_rows = batch_rows
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        self._under_way: dict[tuple[tuple[str, ...], bytes], Future[Row]] = {}

    def find(self, inputs: Tensors, ports: Sequence[str]) -> list[Row] | None:
        """The ports of every row if all are in the cache, else None. Runs no model."""
        rows = self._cache.find(row_keys(inputs), ports, whole=True)
        found = [row for row in rows if row is not None]
        return found if len(found) == len(rows) else None

    def rows(self, inputs: Tensors, ports: Sequence[str]) -> list[Row]:
        """The ports of every row; computes the missing ones.

        They are `hidden.<l>`, `hidden.<l>.mean<M>`, `pooled`, `logits`, `logits.top<k>`, `attention_mask`, and of a language
        model `last_hidden_state`, `logprobs.top<k>`, `tokens.top<k>`. A row's hidden states are [its own tokens, width]:
        padding is not kept. Its means are [M, width]. Of a language model's logits the largest k alone are made and kept
        where no more was asked for.
        """
        return self.complete([self.look_up(inputs, ports)])[0]

    def look_up(self, inputs: Tensors, ports: Sequence[str]) -> LookUp:
        """The ports of the rows that are known, and the others prepared to be computed.

        Raises:
            UnknownPort, InvalidSetting, InvalidTensor: inputs that this teacher does not take.
        """
        keys = row_keys(inputs)
        rows = self._cache.find(keys, ports)
        missing = [place for place, row in enumerate(rows) if row is None]
        prepared: list[Tensors] = []
        for start in range(0, len(missing), self._batch_rows):
            part = missing[start : start + self._batch_rows]
            raw = _trimmed({name: tensor[part] for name, tensor in inputs.items()})
            prepared += _apart(self._teacher.prepare(raw, self._max_tokens))
        return LookUp(tuple(ports), keys, rows, dict(zip(missing, prepared, strict=True)))

    def complete(self, look_ups: Sequence[LookUp]) -> list[list[Row]]:
        """All rows of each look-up; what is missing is computed once for all who miss it, many rows in a pass.

        What another thread is computing just now is waited for.
        """
        missing: dict[tuple[tuple[str, ...], Hashable], dict[bytes, Tensors]] = {}
        for each in look_ups:
            for place, prepared in each.missing.items():
                missing.setdefault((each.ports, self._teacher.kind(prepared)), {})[each.keys[place]] = prepared
        computed: dict[tuple[tuple[str, ...], bytes], Row] = {}
        for (ports, _), rows in missing.items():
            computed |= {(ports, key): row for key, row in self._shared(rows, ports)}
        return [
            [row if row is not None else computed[each.ports, each.keys[place]] for place, row in enumerate(each.rows)]
            for each in look_ups
        ]

    def _shared(self, rows: Mapping[bytes, Tensors], ports: tuple[str, ...]) -> Iterator[tuple[bytes, Row]]:
        """Rows that no other thread is computing, then those of the others, and at last what these could not compute."""
        with self._lock:
            theirs = {key: self._under_way[ports, key] for key in rows if (ports, key) in self._under_way}
            mine: dict[bytes, Future[Row]] = {key: Future() for key in rows if key not in theirs}
            self._under_way |= {(ports, key): future for key, future in mine.items()}
        try:
            for key, row in self._computed({key: rows[key] for key in mine}, ports):
                mine[key].set_result(row)
        finally:
            self._let_go(ports, mine)
        found = {key: _result(future) for key, future in (mine | theirs).items()}
        yield from ((key, row) for key, row in found.items() if row is not None)
        yield from self._computed({key: rows[key] for key, row in found.items() if row is None}, ports)

    def _let_go(self, ports: tuple[str, ...], mine: Mapping[bytes, Future[Row]]) -> None:
        """Nobody waits for these any more; who waits for one that has failed computes it."""
        with self._lock:
            for key in mine:
                del self._under_way[ports, key]
        for future in mine.values():
            future.cancel()

    def _computed(self, rows: Mapping[bytes, Tensors], ports: tuple[str, ...]) -> Iterator[tuple[bytes, Row]]:
        keys = list(rows)
        for start in range(0, len(keys), self._batch_rows):
            part = keys[start : start + self._batch_rows]
            found = self._compute(self._teacher.join([rows[key] for key in part]), ports)
            for key, row in zip(part, found, strict=True):
                self._cache.keep(key, row)
                yield key, row

    def _compute(self, prepared: Tensors, ports: Sequence[str]) -> list[Row]:
        ports = self._with_companions(ports)
        batch = len(next(iter(prepared.values())))
        lengths = _lengths(prepared[MASK]) if MASK in prepared else [_ALL] * batch  # before it goes to the device
        prepared = {name: self._transfers.place(tensor) for name, tensor in prepared.items()}
        layers = [_layer(port) for port in ports if port.startswith("hidden.")]
        found = self._states(prepared, layers, ports)
        for port in filter(_is_mean, ports):
            states = found[f"hidden.{_layer(port)}"]
            mask = self._teacher.family.own_mask(prepared, states)
            found[port] = segment_means(states, mask, int(port.partition(".mean")[2]))
        if MASK in prepared:
            found[MASK] = prepared[MASK].bool()
        return [{port: _row(found[port], row, port, lengths[row]) for port in ports} for row in range(batch)]

    def _states(self, prepared: Tensors, layers: Sequence[int], ports: Sequence[str]) -> dict[str, torch.Tensor]:
        """The teacher's own ports, and what its head makes of them; of a language model a piece at a time, as far as it can be."""
        tops = [port for port in ports if is_likeliest(port)]
        speaks = self._teacher.heads == ("causal_lm",)
        needs_logits = "logits" in ports or (bool(tops) and not speaks)
        needs_finished = _LAST in ports or (bool(tops) and speaks)
        found = self._teacher.states(prepared, layers, needs_logits, "pooled" in ports, needs_finished)
        if tops and speaks:
            return found | likeliest(found[_LAST], self._teacher.said, tops)
        return found | {port: top(found["logits"], port) for port in tops}

    def _with_companions(self, ports: Sequence[str]) -> Sequence[str]:
        """The ports, and the small ones that lie on the way: each layer's mean, and at the top `pooled` and `logits`."""
        if self._batch_rows == 1:
            return ports
        last = self._teacher.family.layers
        layers = [_layer(port) if port.startswith("hidden.") else last for port in ports if port != MASK]
        reached = max(layers, default=-1)
        found = [f"hidden.{layer}.mean1" for layer in range(reached + 1)]
        if reached == last:
            found += ["pooled"]
            found += ["logits"] if self._teacher.heads and self._teacher.heads != ("causal_lm",) else []
        return tuple(dict.fromkeys([*ports, *found]))


def top(logits: torch.Tensor, port: str) -> torch.Tensor:
    """[..., classes] -> [..., 2, k] float32 for `logits.top<k>`: the k largest and, as floats, their places."""
    count = int(port.removeprefix("logits.top"))
    values, places = logits.float().topk(min(count, logits.shape[-1]), dim=-1)
    return torch.stack([values, places.to(values.dtype)], dim=-2)


def _result(future: Future[Row]) -> Row | None:
    try:
        return future.result()
    except CancelledError:
        return None


def _row(batch: torch.Tensor, row: int, port: str, length: int) -> torch.Tensor:
    found = batch[row]
    return (found[:length] if _is_ragged(port, found) else found).clone()


def stack_rows(rows: Sequence[Row], port: str, tokens: int | None = None) -> torch.Tensor:
    """One port of all rows as a batch; ragged rows are padded with zeros, to `tokens` where given."""
    parts = [row[port] for row in rows]
    if not _is_ragged(port, parts[0]):
        return torch.stack(parts)
    batch = pad_sequence(parts, batch_first=True)
    missing = (tokens or batch.shape[1]) - batch.shape[1]
    if missing <= 0:
        return batch
    return torch.cat([batch, batch.new_zeros(batch.shape[0], missing, *batch.shape[2:])], dim=1)


def _is_ragged(port: str, row: torch.Tensor) -> bool:
    """Whether the row's first dimension is the teacher's own tokens."""
    if port.startswith("hidden."):
        return not _is_mean(port)
    if port.startswith("logits.top"):
        return row.dim() == 3
    return port in (MASK, _LAST) or (port == "logits" and row.dim() == 2) or is_likeliest(port)


def _layer(port: str) -> int:
    """Of `hidden.<layer>` and `hidden.<layer>.mean<M>`."""
    return int(port.split(".")[1])


def _is_mean(port: str) -> bool:
    return port.startswith("hidden.") and ".mean" in port


def _lengths(mask: torch.Tensor) -> list[int]:
    """Of each row, up to its last real token; of a mask on the host."""
    lengths: list[int] = ((mask != 0) * torch.arange(1, mask.shape[1] + 1)).amax(1).tolist()
    return lengths


def _apart(prepared: Tensors) -> list[Tensors]:
    """The rows of prepared inputs, each without its padding."""
    whole = [
        {name: tensor[row] for name, tensor in prepared.items()} for row in range(len(next(iter(prepared.values()))))
    ]
    if MASK not in prepared:
        return list(whole)
    lengths = _lengths(prepared[MASK])
    return [{name: tensor[:length] for name, tensor in row.items()} for row, length in zip(whole, lengths, strict=True)]


def _trimmed(inputs: Tensors) -> Tensors:
    """Cuts columns that are padding in every row."""
    if MASK not in inputs:
        return inputs
    longest = max(_lengths(inputs[MASK]))
    return {name: tensor[:, : max(1, longest)] for name, tensor in inputs.items()}
