"""Pads several students' rows into one batch, runs it once, and hands the rows back; knows no student.

Calls run in step (`together`): each goes on until it asks for something, and asks of one kind are answered at once.
The order of the kinds lets every call reach the body before the body runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch.nn.functional import pad

from teacher_server.engine.asks import Ask, Asking, Decode, Encode, Through
from teacher_server.engine.stacking import decode_each, encode_each
from teacher_server.models.pauses import Pauses
from teacher_server.models.split import FrozenTeacher

__all__ = ["Answering", "answering", "length_class", "merge_rows", "owned", "split_rows", "together"]

Answering = Mapping[type[Ask], Callable[[Sequence[Any]], Sequence[Any]]]
"""What answers each kind of ask, in the order in which the kinds take their turns."""

Found = TypeVar("Found")

_SHORT = 8
_STRETCH = 1.5


def together(calls: Sequence[Asking[Found]], answers: Answering) -> list[Found | Exception]:
    """Runs calls in step and gives what each found, or the error that it raised itself.

    An error of work done for several calls at once is raised: it may be any one's fault. So is a device without room.
    """
    found: dict[int, Found | Exception] = {}
    waiting: dict[int, Ask] = {}

    def go_on(place: int, answer: Any) -> None:
        try:
            waiting[place] = calls[place].send(answer)
        except StopIteration as end:
            found[place] = end.value
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            found[place] = error

    for place in range(len(calls)):
        go_on(place, None)
    while waiting:
        kind = next(kind for kind in answers if any(type(ask) is kind for ask in waiting.values()))
        turn = {place: waiting.pop(place) for place in sorted(waiting) if type(waiting[place]) is kind}
        for place, answer in zip(turn, answers[kind](list(turn.values())), strict=True):
            go_on(place, answer)
    return [found[place] for place in range(len(calls))]


def answering(teacher: FrozenTeacher, pauses: Pauses | None = None) -> Answering:
    """Answers what a conversation asks for: codecs first, the body, with its pauses, when nobody waits for a codec."""
    return {Decode: decode_each, Encode: encode_each, Through: lambda asks: _through(teacher, pauses, asks)}


def length_class(tokens: int, takes_padding: bool = True) -> int:
    """The padded length up to which rows of so many tokens share a batch: at most half as many again, or 8.

    Where padding is not taken it is the length itself.
    """
    if not takes_padding:
        return tokens
    longest = _SHORT
    while longest < tokens:
        longest = int(longest * _STRETCH)
    return longest


def merge_rows(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows [rows_i, tokens_i, ...] of several owners as one batch [sum of rows, longest, ...], zeros behind the shorter."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.shape[1] for part in parts)
    return torch.cat([_padded(part, longest) for part in parts])


def split_rows(whole: torch.Tensor, sizes: Sequence[tuple[int, int | None]]) -> list[torch.Tensor]:
    """Gives each owner its rows and tokens of a merged batch; None for all the tokens there are."""
    parts = torch.split(whole, [rows for rows, _ in sizes])
    return [part[:, :tokens] for part, (_, tokens) in zip(parts, sizes, strict=True)]


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without its graph, in memory of its own: one owner's rows must not keep a whole batch."""
    alone = tensor.detach()
    return alone if alone.untyped_storage().nbytes() == alone.nbytes else alone.clone()


def _through(teacher: FrozenTeacher, pauses: Pauses | None, asks: Sequence[Through]) -> list[torch.Tensor]:
    """One pass over the body for each span and class of lengths."""
    takes_padding = teacher.family.takes_padding
    passes: dict[Hashable, list[int]] = {}
    for place, ask in enumerate(asks):
        passes.setdefault((ask.span, length_class(ask.states.shape[1], takes_padding)), []).append(place)
    found: dict[int, torch.Tensor] = {}
    for places in passes.values():
        found |= zip(places, _one_pass(teacher, pauses, [asks[place] for place in places]), strict=True)
    return [found[place] for place in range(len(asks))]


def _one_pass(teacher: FrozenTeacher, pauses: Pauses | None, asks: Sequence[Through]) -> list[torch.Tensor]:
    states, mask = merge_rows([ask.states for ask in asks]), _merged_mask(asks)
    left = teacher.upper(states, mask, asks[0].span, pauses).float()
    takes_padding = teacher.family.takes_padding  # else all are equally long, and strides may have made fewer tokens
    return split_rows(left, [(len(ask.states), ask.states.shape[1] if takes_padding else None) for ask in asks])


def _merged_mask(asks: Sequence[Through]) -> torch.Tensor | None:
    """None where nothing is hidden, so that nobody has to look into a mask to know."""
    if all(ask.mask is None for ask in asks) and len({ask.states.shape[1] for ask in asks}) == 1:
        return None
    return merge_rows([_mask(ask) for ask in asks])


def _mask(ask: Through) -> torch.Tensor:
    if ask.mask is not None:
        return ask.mask
    return torch.ones(ask.states.shape[:2], dtype=torch.bool, device=ask.states.device)


def _padded(part: torch.Tensor, tokens: int) -> torch.Tensor:
    missing = tokens - part.shape[1]
    return part if missing == 0 else pad(part, (0, 0) * (part.dim() - 2) + (0, missing))
