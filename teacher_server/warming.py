"""The calls a server makes to itself before it serves: one observation, and each form in which the span is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from teacher_server.models.split import FrozenTeacher
from teaching_protocol.verbs import BackwardRequest, DescribeReply, ForwardRequest, SessionRef

__all__ = ["warm_up_calls"]

_ROWS, _TOKENS = 3, 5  # unequal: torch.compile takes equal sizes for the same one


def warm_up_calls(
    teacher: FrozenTeacher, session: SessionRef, card: DescribeReply, is_compiled: bool
) -> Iterator[tuple[str, Any]]:
    """Methods and their requests, in the order in which to make them; the session's messages have width 1.

    torch.compile makes kernels of their own for one row and for one token, with and without a mask, and for a
    Forward that a Backward follows. All of them are asked for here, so that no student waits for a compiler.
    """
    inputs = teacher.example()
    yield "Forward", ForwardRequest(session, "warm-up", (f"hidden.{card.exit}",), inputs=inputs)
    if not is_compiled:
        return
    for number, message in enumerate(_messages(teacher, card)):
        given: dict[str, Any] = {"outputs": ("answer",), "grad_inputs": ("message",), "inputs": message}
        yield "Forward", ForwardRequest(session, "", **given)
        yield "Forward", ForwardRequest(session, f"forward-{number}", backward_follows=True, **given)
        grads = {"answer": torch.zeros(_answered(teacher, card, message["message"]))}
        yield "Backward", BackwardRequest(session, f"backward-{number}", f"forward-{number}", grads)


def _messages(teacher: FrozenTeacher, card: DescribeReply) -> Iterator[dict[str, torch.Tensor]]:
    takes_padding = teacher.family.takes_padding
    own = 0 if takes_padding else _own_tokens(teacher, card.entry)
    for rows, tokens in product((1, _ROWS), (1, min(_TOKENS, card.limits.tokens)) if takes_padding else (own,)):
        message = {"message": torch.zeros(rows, tokens, 1)}
        yield message
        if takes_padding and tokens > 1:
            mask = torch.ones(rows, tokens, dtype=torch.bool)
            mask[0, -1] = False
            yield message | {"message_mask": mask}


def _own_tokens(teacher: FrozenTeacher, layer: int) -> int:
    return teacher.states(teacher.prepare(teacher.example()), [layer])[f"hidden.{layer}"].shape[1]


def _answered(teacher: FrozenTeacher, card: DescribeReply, message: torch.Tensor) -> tuple[int, int, int]:
    """The shape of an answer: a span with strides has fewer tokens at its end."""
    tokens = message.shape[1] if teacher.family.takes_padding else _own_tokens(teacher, card.exit)
    return len(message), tokens, 1
