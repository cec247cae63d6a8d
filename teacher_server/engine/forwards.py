"""Forwards of several students as one batch, and the graph they leave behind; knows no queue and no reply of before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch

from teacher_server.engine.answers import Answers, Question
from teacher_server.engine.cohorts import Cohort, GraphCache, Key, Member, storage_place, weigh_graph
from teacher_server.engine.merging import owned
from teacher_server.models.split import FrozenTeacher
from teacher_server.sessions.replies import size_bytes
from teacher_server.sessions.sessions import Session
from teaching_protocol.verbs import ForwardReply, ForwardRequest

__all__ = ["Asked", "Forwards"]

Asked = tuple[Session, ForwardRequest]


class Forwards:
    """Runs Forwards together; those that a Backward follows leave one graph for all of them.

    Args:
        answers: computes the outputs.
        graphs: keeps the graphs.
        input_bytes: of inputs that a session keeps, to run a Forward again.
    """

    def __init__(self, teacher: FrozenTeacher, answers: Answers, graphs: GraphCache, input_bytes: int) -> None:
        self._answers = answers
        self._graphs = graphs
        self._input_bytes = input_bytes
        self._weights = frozenset(map(storage_place, chain(teacher.model.parameters(), teacher.model.buffers())))

    def run(self, asked: Sequence[Asked]) -> list[ForwardReply | Exception]:
        """A reply for each, or the asker's error. What concerns them all is raised, and then nothing has happened."""
        if not asked[0][1].backward_follows:
            with torch.no_grad():
                found = self._answers.outputs([self._answers.question(*each) for each in asked])
            return [each if isinstance(each, Exception) else ForwardReply(outputs=each) for each in found]
        codecs = map(storage_place, chain.from_iterable(session.parameters() for session, _ in asked))
        with weigh_graph(self._weights.union(codecs)) as weight:
            members, rows = self.graph(asked)
        self._remember(asked, members, Cohort(_alive(members), rows, weight.size_bytes))
        return [
            each if isinstance(each, Exception) else ForwardReply(outputs=_owned(each)) for each in members.values()
        ]

    def graph(self, asked: Sequence[Asked]) -> tuple[dict[Key, Member | Exception], int]:
        """Runs Forwards with a graph: the ends of each call in it, or the asker's error, and the rows of the batch."""
        questions = [self._answers.question(*each) for each in asked]
        with torch.enable_grad():
            found = self._answers.outputs(questions)
        members = {
            (each.session.id, each.request.call_id): _member(each, outputs)
            for each, outputs in zip(questions, found, strict=True)
        }
        return members, sum(_rows(each) for each in questions)

    def _remember(self, asked: Sequence[Asked], members: dict[Key, Member | Exception], cohort: Cohort) -> None:
        self._graphs.put(cohort)
        for session, request in asked:
            if isinstance(members[session.id, request.call_id], Exception):
                continue
            size = size_bytes(request.inputs)
            for call_id in session.open_call(request.call_id, request, size, self._input_bytes):
                self._graphs.drop_call((session.id, call_id))
            if session.closed:  # it left while this ran: what it held must not stay
                self._graphs.drop(session.id)


def _member(question: Question, outputs: dict[str, torch.Tensor] | Exception) -> Member | Exception:
    return outputs if isinstance(outputs, Exception) else Member(question.leaves, outputs, _rows(question))


def _alive(members: dict[Key, Member | Exception]) -> dict[Key, Member]:
    return {key: member for key, member in members.items() if isinstance(member, Member)}


def _rows(question: Question) -> int:
    return len(next(iter(question.request.inputs.values())))


def _owned(member: Member) -> dict[str, torch.Tensor]:
    return {name: owned(value) for name, value in member.outputs.items()}
