"""Forwards and Backwards of calls as autograd sees them, several at once; knows no lease, no network and no teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from student_client.teachers.pausing import Begun, Overlap
from student_client.teachers.session import Session
from teaching_protocol.errors import TeachingError
from teaching_protocol.threads import side_threads
from teaching_protocol.verbs import SessionRef, has_gradient

__all__ = ["Exchange", "Failed", "Question", "exchange", "exchange_many", "placed", "settled"]

Tensors = Mapping[str, torch.Tensor]
T = TypeVar("T")

Failed = Callable[[int, TeachingError], bool]
"""Hears of the call at a place that failed: True sends it again, False goes on without it, or it raises."""


@dataclass(frozen=True)
class Question:
    """One call: an enrolled session, input ports, and the names of output ports."""

    session: Session
    inputs: Tensors
    outputs: tuple[str, ...]


def exchange(question: Question) -> dict[str, torch.Tensor]:
    """Output ports for input ports, differentiable to the float message inputs and the teacher's codec.

    The outputs come back on the device of the first input.
    """
    found = exchange_many([question])[0]
    assert found is not None, "a call that failed raises"
    return found


def exchange_many(
    questions: Sequence[Question], failed: Failed | None = None, pool: Executor | None = None
) -> list[dict[str, torch.Tensor] | None]:
    """`exchange` of several questions at once: all Forwards are in flight together, and so are all Backwards.

    One autograd function has the outputs of all, so that its backward comes when every gradient is there.

    Args:
        questions: of different sessions, for the calls of one session are taken one after the other.
        failed: hears of each question that fails, by its place, in Forward or Backward, after all others are through;
            None raises what went wrong. A question that is given up in Backward gives its inputs gradients of zero;
            one that is sent again there is asked anew before.
        pool: of threads; None starts some where there are several questions.

    Returns:
        the outputs of each question, None for one that was given up.

    Raises:
        TeachingError: of the first question that fails; the text of others that fail with it stands in its notes.
    """
    return Exchange(questions, failed, pool).result()


class Exchange:
    """Questions to be answered together; see `exchange_many`, of which `result` is the second half.

    Args:
        questions, failed, pool: as of `exchange_many`.
        overlap: with it the Forwards are under way from now on; without it `result` sends them. What was answered by a
            session that was lost and opened anew before `result` counts for nothing: it is asked again.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        failed: Failed | None = None,
        pool: Executor | None = None,
        overlap: Overlap | None = None,
    ) -> None:
        self._questions, self._failed, self._pool, self._overlap = questions, failed, pool, overlap
        self._calls = [_call(question) for question in questions]
        self._jobs: list[Callable[[], list[torch.Tensor]]] = []
        for call, each in zip(self._calls, questions, strict=True):
            job = partial(call.forward, tuple(each.inputs.values()))
            begun = job if overlap is None else Begun(job, overlap.threads, call.is_of_this_session)
            self._jobs.append(partial(call.session.waiting, begun))

    def result(self) -> list[dict[str, torch.Tensor] | None]:
        """The outputs of each question, None for one that was given up.

        Raises:
            TeachingError: as `exchange_many`.
        """
        replies = settled(self._jobs, self._failed, self._pool)
        heard = [place for place, reply in enumerate(replies) if reply is not None]
        found = [output for reply in replies if reply is not None for output in reply]
        if any(self._calls[place].backward_follows for place in heard):
            calls = [self._calls[place] for place in heard]
            together = _Together(calls, heard, self._failed, self._pool, self._overlap, found)
            values = [value for place in heard for value in self._questions[place].inputs.values()]
            anchor = torch.zeros((), requires_grad=True)  # Backward reaches the codec if nothing sent needs a gradient
            found = list(_Exchange.apply(together, anchor, *values))  # type: ignore[no-untyped-call]
        rest = iter(found)
        return [
            None if reply is None else {name: next(rest) for name in each.outputs}
            for reply, each in zip(replies, self._questions, strict=True)
        ]


def settled(
    jobs: Sequence[Callable[[], T]], failed: Failed | None = None, pool: Executor | None = None
) -> list[T | None]:
    """What each job gives, all run at once; one alone runs in the caller's thread.

    Args:
        jobs: harmless to repeat.
        failed: as of `exchange_many`.
        pool: of threads; None starts some where there are several jobs.

    Raises:
        TeachingError: as `exchange_many`.
    """
    if len(jobs) == 1 and failed is None:
        return [jobs[0]()]
    found: list[T | None] = [None] * len(jobs)
    waiting = list(range(len(jobs)))
    while waiting:
        outcomes = _at_once([jobs[place] for place in waiting], pool)
        again: list[int] = []
        refused: list[TeachingError] = []
        for place, outcome in zip(waiting, outcomes, strict=True):
            if not isinstance(outcome, TeachingError):
                found[place] = outcome
                continue
            try:
                if _hear(failed, place, outcome):
                    again.append(place)
            except TeachingError as error:
                refused.append(error)
        _raise_first(refused)
        waiting = again
    return found


def placed(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A received tensor in memory of our own (received memory is read-only), floats as float32."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device=device).copy_(tensor)


@dataclass
class _Call:
    """One Forward without its tensors, and what its Backward needs. `id` is empty while it has to be made anew.

    `asked` is the session that the Forward was last sent to: by now another one may be open in its place.
    """

    session: Session
    names: tuple[str, ...]
    outputs: tuple[str, ...]
    backward_follows: bool
    grad_inputs: tuple[str, ...]
    id: str = ""
    asked: SessionRef | None = None

    def is_of_this_session(self) -> bool:
        """Whether the Forward went to the session that is open now."""
        return self.asked == self.session.ref

    @torch.no_grad()
    def forward(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Sends the Forward; gives the outputs, float32 where they are floats."""
        inputs = dict(zip(self.names, values, strict=True))
        self.asked = self.session.ref
        with torch.autocast(values[0].device.type, enabled=False):  # a teacher in this process computes as in its own
            self.id, found = self.session.forward(inputs, self.outputs, self.backward_follows, self.grad_inputs)
        return [placed(found[name], values[0].device) for name in self.outputs]

    @torch.no_grad()
    def backward(self, grads: Sequence[torch.Tensor | None], values: Sequence[torch.Tensor]) -> Tensors:
        """Sends the Backward of the outputs that have a gradient; after one that failed, the Forward before it."""
        if not self.id or not self.is_of_this_session():
            self.forward(values)
        call_id, self.id = self.id, ""
        given = {name: grad for name, grad in zip(self.outputs, grads, strict=True) if grad is not None}
        inputs = dict(zip(self.names, values, strict=True))
        again = {"outputs": self.outputs, "grad_inputs": self.grad_inputs, "inputs": inputs}
        found = self.session.backward(call_id, given, again)
        self.id = call_id
        return found

    def gradients(self, found: Tensors | None, values: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """The gradient of each input; zeros where the Backward was given up, None where none is wanted."""
        grads: list[torch.Tensor | None] = []
        for name, value in zip(self.names, values, strict=True):
            if found is None and name in self.grad_inputs:
                grads.append(torch.zeros_like(value))
            elif found is not None and name in found:
                grads.append(placed(found[name], value.device).to(value.dtype))
            else:
                grads.append(None)
        return grads


_Asked = tuple[_Call, Sequence[torch.Tensor | None], Sequence[torch.Tensor]]
"""A call, the gradients of its outputs, and its inputs."""


@dataclass
class _Together:
    """The calls of one exchange that were answered, by their places; `outputs` are handed over once."""

    calls: Sequence[_Call]
    places: Sequence[int]
    failed: Failed | None
    pool: Executor | None
    overlap: Overlap | None
    outputs: list[torch.Tensor]

    def backward(
        self, grads: Sequence[torch.Tensor | None], values: Sequence[torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """Sends the Backwards of all calls that have a gradient, at once."""
        their_grads = _dealt(grads, [len(call.outputs) for call in self.calls])
        their_values = _dealt(values, [len(call.names) for call in self.calls])
        asked = [at for at, given in enumerate(their_grads) if any(grad is not None for grad in given)]
        jobs = self._sent([(self.calls[at], their_grads[at], their_values[at]) for at in asked])
        failed = None if self.failed is None else partial(self._hear, self.failed, asked)
        replies = dict(zip(asked, settled(jobs, failed, self.pool), strict=True))
        found: list[torch.Tensor | None] = []
        for at, (call, inputs) in enumerate(zip(self.calls, their_values, strict=True)):
            found += call.gradients(replies[at], inputs) if at in replies else [None] * len(inputs)
        return found

    def _sent(self, asked: Sequence[_Asked]) -> list[Callable[[], Tensors]]:
        """The Backwards, to be waited for: they are under way where calls overlap with other work, which is done now."""
        jobs: list[Callable[[], Tensors]] = [partial(call.backward, grads, values) for call, grads, values in asked]
        if self.overlap is not None:
            jobs = [Begun(job, self.overlap.threads) for job in jobs]
            self.overlap.meanwhile()
        return [partial(call.session.waiting, job) for (call, _, _), job in zip(asked, jobs, strict=True)]

    def _hear(self, failed: Failed, asked: Sequence[int], job: int, error: TeachingError) -> bool:
        return failed(self.places[asked[job]], error)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, together: _Together, anchor: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs, together.outputs = together.outputs, []
        ctx.together = together
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*values)
        names = [name for call in together.calls for name in call.outputs]
        constant = [value for name, value in zip(names, outputs, strict=True) if not has_gradient(name)]
        ctx.mark_non_differentiable(*constant)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return (None, None, *ctx.together.backward(grads, ctx.saved_tensors))


def _call(question: Question) -> _Call:
    follows = torch.is_grad_enabled() and any(map(has_gradient, question.outputs))
    wanted = tuple(name for name, value in question.inputs.items() if follows and value.requires_grad)
    return _Call(question.session, tuple(question.inputs), question.outputs, follows, wanted)


def _at_once(jobs: Sequence[Callable[[], T]], pool: Executor | None) -> list[T | TeachingError]:
    """What each job gives, or the error of the tree it raises; the first job runs in the caller's thread."""
    if pool is None and len(jobs) > 1:
        with side_threads(len(jobs) - 1, "exchange") as made:
            return _at_once(jobs, made)
    others = [] if pool is None else [pool.submit(_outcome, job) for job in jobs[1:]]
    outcomes = [*(_outcome(job) for job in jobs[:1]), *(other.result() for other in others)]
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not isinstance(outcome, TeachingError):
            raise outcome
    return outcomes  # type: ignore[return-value]  # other exceptions were raised


def _outcome(job: Callable[[], T]) -> T | Exception:
    try:
        return job()
    except Exception as error:
        return error


def _hear(failed: Failed | None, place: int, error: TeachingError) -> bool:
    if failed is None:
        raise error
    return failed(place, error)


def _raise_first(errors: Sequence[TeachingError]) -> None:
    if not errors:
        return
    for other in errors[1:]:
        errors[0].add_note(f"another teacher failed, too: {type(other).__name__}: {other}")
    raise errors[0]


def _dealt(values: Sequence[T], counts: Sequence[int]) -> list[Sequence[T]]:
    """Cuts a sequence into parts of these lengths."""
    dealt, start = [], 0
    for count in counts:
        dealt.append(values[start : start + count])
        start += count
    return dealt
