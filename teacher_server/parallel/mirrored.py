"""The split teacher as the process that serves has it: every pass over the body is run by all processes at once; knows no socket."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from teacher_server.families import Family
from teacher_server.models.split import FrozenTeacher, LayerSpan
from teacher_server.parallel.followers import Followers
from teacher_server.parallel.passes import Back, Look, Run, Say

__all__ = ["MirroredTeacher", "SpanGraph"]


class SpanGraph:
    """A span with a graph of its own, which ends where others begin: so it is the same graph in every process."""

    def __init__(self, family: Family, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> None:
        with torch.enable_grad():
            self._entered = states.detach().requires_grad_()
            self._left = family.run(self._entered, mask, span)

    @property
    def output(self) -> torch.Tensor:
        """The states at the span's end, without the graph."""
        return self._left.detach()

    def back(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of the states at the span's start; once."""
        return torch.autograd.grad(self._left, self._entered, grad)[0]


class MirroredTeacher(FrozenTeacher):
    """A teacher of whose weights this process has a share, and `followers` the others.

    Args:
        teacher: loaded in this process, while the followers load theirs.
        followers: started.
    """

    def __init__(self, teacher: FrozenTeacher, followers: Followers) -> None:
        super().__init__(teacher.model, teacher.name, teacher.family.tokenizer)
        self._followers = followers
        self._keys = itertools.count(1)

    def run(self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> torch.Tensor:
        """See `FrozenTeacher.run`. All keep the span's graph if one is asked for here, as long as it is kept here."""
        if torch.is_grad_enabled() and states.requires_grad:
            left: torch.Tensor = _Mirrored.apply(self, mask, span, states)  # type: ignore[no-untyped-call]
            return left
        with self._followers.running(Run(span.start, span.stop), _entering(states, mask)):
            return super().run(states, mask, span)

    def look(
        self,
        inputs: Mapping[str, torch.Tensor],
        layers: Sequence[int],
        with_logits: bool,
        with_pooled: bool,
        with_finished: bool,
    ) -> dict[str, torch.Tensor]:
        """See `FrozenTeacher.look`."""
        with self._followers.running(Look(tuple(layers), with_logits, with_pooled, with_finished), inputs):
            return super().look(inputs, layers, with_logits, with_pooled, with_finished)

    def say(self, finished: torch.Tensor) -> torch.Tensor:
        """See `FrozenTeacher.say`."""
        with self._followers.running(Say(), {"finished": finished}):
            return super().say(finished)

    def close(self) -> None:
        """Ends the followers."""
        self._followers.close()

    def begin(self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> _Held:
        """Runs a span whose graph all processes keep."""
        key = next(self._keys)
        with self._followers.running(Run(span.start, span.stop, key), _entering(states, mask)):
            return _Held(self._followers, key, SpanGraph(self.family, states, mask, span))


class _Held:
    """A graph here and its likes elsewhere, which go when it goes."""

    def __init__(self, followers: Followers, key: int, graph: SpanGraph) -> None:
        self.graph = graph
        self._followers, self._key = followers, key
        self._gone = weakref.finalize(self, followers.drop, key)
        self._gone.atexit = False

    def back(self, grad: torch.Tensor) -> torch.Tensor:
        """Goes back through all of them, once."""
        self._gone.detach()
        with self._followers.running(Back(self._key), {"grad": grad}):
            return self.graph.back(grad)


class _Mirrored(torch.autograd.Function):
    """A span in the graph of a batch: one node, behind which lies the span's own graph."""

    @staticmethod
    def forward(
        ctx: Any, teacher: MirroredTeacher, mask: torch.Tensor | None, span: LayerSpan, states: torch.Tensor
    ) -> torch.Tensor:
        ctx.held = teacher.begin(states, mask, span)
        output: torch.Tensor = ctx.held.graph.output
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None, None, torch.Tensor]:
        return None, None, None, ctx.held.back(grad)


def _entering(states: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {"states": states} if mask is None else {"states": states, "mask": mask}
