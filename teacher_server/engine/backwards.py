"""Backwards of several students as one batch, through the graphs they share; knows no queue and no optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch

from teacher_server.engine.cohorts import GraphCache, Key, Member
from teacher_server.engine.forwards import Forwards
from teacher_server.engine.merging import owned
from teacher_server.engine.transfers import Transfers
from teacher_server.faults import noted
from teacher_server.metrics.metrics import Metrics
from teacher_server.models.pauses import Pauses
from teacher_server.sessions.sessions import Grads, OpenCall, Session, added
from teaching_protocol.errors import CallFinished, InputsNeeded, InvalidTensor, NonFiniteError, StaleCall, UnknownCall
from teaching_protocol.verbs import BackwardReply, BackwardRequest, ForwardRequest, Tensors

__all__ = ["Backwards"]

Asked = tuple[Session, BackwardRequest]
Outcomes = dict[Key, BackwardReply | Exception]


@dataclass(frozen=True, eq=False)
class _Way:
    """One call's way through a graph: gradients `sent` for its outputs, by name; what they are wanted for, and whose they are."""

    session: Session
    call: OpenCall
    sent: Tensors
    member: Member
    rank: int

    @property
    def wanted(self) -> dict[str, torch.Tensor]:
        """The inputs whose gradients were asked for."""
        return {name: leaf for name, leaf in self.member.leaves.items() if leaf.requires_grad}

    @property
    def targets(self) -> list[torch.Tensor]:
        """The wanted inputs, then the codec's parameters."""
        return [*self.wanted.values(), *self.session.parameters()]


class Backwards:
    """Runs Backwards together: one backward for each graph that they share.

    A call whose graph is gone, or not worth a backward for the few that came, runs its Forward again, together with the
    others that must. Nothing of a session changes before all of its gradients are found and finite.

    Args:
        input_bytes: what a session keeps of inputs, for the error that says so.
    """

    def __init__(
        self,
        forwards: Forwards,
        graphs: GraphCache,
        transfers: Transfers,
        pauses: Pauses,
        input_bytes: int,
        metrics: Metrics,
    ) -> None:
        self._pauses = pauses
        self._forwards = forwards
        self._transfers = transfers
        self._graphs = graphs
        self._input_bytes = input_bytes
        self._metrics = metrics

    def run(self, asked: Sequence[Asked]) -> list[BackwardReply | Exception]:
        """A reply for each, or the asker's error. What concerns them all is raised, and then nothing was gathered."""
        outcomes: Outcomes = {}
        calls = {(session.id, request.forward_id): (session, request) for session, request in asked}
        for key, each in calls.items():
            with noted(outcomes, key):
                _open_call(*each)
        valid = {key: each for key, each in calls.items() if key not in outcomes}
        found: dict[Key, tuple[_Way, Grads]] = {}
        for begin, ways in self._ways(valid, outcomes):
            with self._pauses.share(begin, 1.0):
                found |= {key: (ways[key], grads) for key, grads in _through(ways).items()} if ways else {}
        finite = self._are_finite([grads for _, grads in found.values()])
        for (key, (way, grads)), is_finite in zip(found.items(), finite, strict=True):
            with noted(outcomes, key):
                outcomes[key] = _gathered(way, grads, is_finite)
        return [outcomes[key] for key in calls]

    def _ways(self, calls: Mapping[Key, Asked], outcomes: Outcomes) -> Iterator[tuple[float, dict[Key, _Way]]]:
        """The ways through each graph, the kept ones first, and how much of their work is done by then; who has none is told why."""
        graphs = [cohort.members for cohort in self._graphs.take(list(calls))]
        for members in graphs:
            yield 0.0, self._ends(members, calls, outcomes)
        kept = set(chain.from_iterable(graphs))
        gone = {key: each for key, each in calls.items() if key not in kept}
        if gone:
            with self._pauses.share(0.0, 0.5):
                members = self._again(gone, outcomes)
            yield 0.5, self._ends(members, calls, outcomes)

    def _ends(self, members: Mapping[Key, Member], calls: Mapping[Key, Asked], outcomes: Outcomes) -> dict[Key, _Way]:
        ways = {}
        for key, member in members.items():
            session, request = calls[key]
            with noted(outcomes, key):
                sent = _placed_grads(request.grads, member.outputs, self._transfers)
                ways[key] = _Way(session, session.calls[request.forward_id], sent, member, request.rank)
        return ways

    def _are_finite(self, found: Sequence[Grads]) -> Sequence[bool]:
        """Whether each call's gradients are all finite; waits for the device once.

        One number tells of all of a call's gradients: some too large to be squared and summed are refused, too.
        """
        norms = [torch.nn.utils.get_total_norm(each for each in grads if each is not None) for grads in found]
        return self._transfers.read(torch.stack(norms).isfinite()) if norms else []

    def _again(self, gone: Mapping[Key, Asked], outcomes: Outcomes) -> dict[Key, Member]:
        """The calls whose graph is gone, in one new graph."""
        forwards = []
        for key, (session, request) in gone.items():
            with noted(outcomes, key):
                forwards.append((session, self._forward(session, request)))
        if not forwards:
            return {}
        self._metrics.recomputes.inc(len(forwards))
        for session, forward in forwards:
            session.calls[forward.call_id].run_again = True
        members, _ = self._forwards.graph(forwards)
        outcomes |= {key: member for key, member in members.items() if isinstance(member, Exception)}
        return {key: member for key, member in members.items() if isinstance(member, Member)}

    def _forward(self, session: Session, request: BackwardRequest) -> ForwardRequest:
        """The Forward to run again: as the session kept it, or as it was sent again."""
        kept = session.calls[request.forward_id].request
        if kept is not None:
            return kept
        if not request.inputs:
            raise InputsNeeded(
                f"the inputs of Forward {request.forward_id!r} were let go to stay within {self._input_bytes} bytes; "
                "send them again with the Backward"
            )
        return ForwardRequest(
            session.ref, request.forward_id, request.outputs, True, request.grad_inputs, request.inputs
        )


def _open_call(session: Session, request: BackwardRequest) -> None:
    call = session.calls.get(request.forward_id)
    if call is None:
        raise UnknownCall(
            f"this session made no Forward {request.forward_id!r} with backward_follows, or so long ago that it is forgotten"
        )
    if call.finished:
        raise CallFinished(f"the Backward of Forward {request.forward_id!r} is done; a graph serves one Backward")
    if call.stale:
        raise StaleCall(
            f"Forward {request.forward_id!r} was made before the session's step {session.step}; do Backward before Step"
        )


def _placed_grads(grads: Tensors, outputs: Mapping[str, torch.Tensor], transfers: Transfers) -> dict[str, torch.Tensor]:
    placed = {}
    for name, grad in grads.items():
        if name not in outputs:
            raise InvalidTensor(f"gradient of {name!r} was sent, but the Forward gave {', '.join(sorted(outputs))}")
        output = outputs[name]
        if not output.requires_grad:
            raise InvalidTensor(f"output port {name!r} has no gradient: it does not depend on message or codec")
        if grad.shape != output.shape or not grad.is_floating_point():
            raise InvalidTensor(
                f"gradient of {name!r} is {grad.dtype} {list(grad.shape)}, expected float {list(output.shape)}"
            )
        placed[name] = torch.empty_like(output).copy_(transfers.place(grad))
    return placed


def _through(ways: Mapping[Key, _Way]) -> dict[Key, Grads]:
    """One backward through a graph: what each call finds for its targets."""
    outputs = [way.member.outputs[name] for way in ways.values() for name in way.sent]
    sent = [grad for way in ways.values() for grad in way.sent.values()]
    wanted = {key: way.targets for key, way in ways.items()}
    targets = list(chain.from_iterable(wanted.values()))
    rest = iter(torch.autograd.grad(outputs, targets, sent, allow_unused=True))
    return {
        key: [None if grad is None else owned(grad) for grad in islice(rest, len(each))] for key, each in wanted.items()
    }


def _gathered(way: _Way, found: Grads, is_finite: bool) -> BackwardReply:
    """Adds the codec's gradients to the session and replies with those of the inputs."""
    if not is_finite:
        raise NonFiniteError("the gradients came out as NaN or infinity and were not applied; lower the loss scale")
    wanted, session = way.wanted, way.session
    session.gathered_by[way.rank] = added(session.gathered_by.get(way.rank, []), found[len(wanted) :])
    way.call.finished, way.call.request = True, None
    given = zip(wanted.items(), found, strict=False)
    return BackwardReply(grads={name: torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in given})
