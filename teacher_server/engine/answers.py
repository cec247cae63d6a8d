"""All output ports of Forwards: the conversation's and what the teacher knows about x, of several calls at once.

Knows no call's id and keeps no graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from teacher_server.engine.asks import Ask, Asking
from teacher_server.engine.conversation import CONVERSATION_PORTS, MESSAGE_INPUTS, Conversation, Own, needs_own_states
from teacher_server.engine.knowledge import MASK, Knowledge, LookUp, stack_rows, top
from teacher_server.engine.knowledge_cache import Row
from teacher_server.engine.merging import Answering, answering, together
from teacher_server.engine.transfers import Transfers
from teacher_server.models.pauses import Pauses
from teacher_server.models.split import FrozenTeacher
from teacher_server.sessions.sessions import Session
from teaching_protocol.errors import NonFiniteError
from teaching_protocol.verbs import ForwardRequest, Tensors

__all__ = ["Answers", "Question", "raw_inputs"]

Outputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Question:
    """A session's Forward; gradients are to flow to `leaves`, its message inputs."""

    session: Session
    request: ForwardRequest
    leaves: Tensors


@dataclass(frozen=True, eq=False)
class _Complete(Ask):
    """All rows of a look-up; what is missing is computed."""

    look_up: LookUp


class Answers:
    """Computes output ports for Forwards of any sessions."""

    def __init__(self, teacher: FrozenTeacher, knowledge: Knowledge, transfers: Transfers, pauses: Pauses) -> None:
        self._teacher = teacher
        self._transfers = transfers
        self._knowledge = knowledge
        self._answering: Answering = {_Complete: self._complete, **answering(teacher, pauses)}

    def question(self, session: Session, request: ForwardRequest) -> Question:
        """The question with its message inputs in memory of our own, float32, ready to gather gradients."""
        leaves = {}
        for name in MESSAGE_INPUTS:
            tensor = request.inputs.get(name)
            if tensor is None or (name == "message_mask" and bool(tensor.all())):
                continue  # a mask that hides nothing is none, and the host can tell without asking the device
            dtype = torch.float32 if tensor.is_floating_point() else torch.bool
            placed = torch.empty(tensor.shape, dtype=dtype, device=self._teacher.device)
            placed.copy_(self._transfers.place(tensor))
            leaves[name] = placed.requires_grad_(name in request.grad_inputs)
        return Question(session, request, leaves)

    def outputs(self, questions: Sequence[Question]) -> list[Outputs | Exception]:
        """For each question its ports, differentiable to its leaves and its session's codec, or the asker's error.

        What an error has to do with a question alone (ports that do not fit, a NonFiniteError) is given; what happens
        in work that is done for several at once is raised.
        """
        found = together([self._call(question) for question in questions], self._answering)
        return _finite(found, self._transfers)

    def known(self, raw: Tensors, outputs: tuple[str, ...]) -> Tensors | None:
        """Student-independent ports if all are in the cache, else None; runs no model."""
        asked = self._asked(outputs)
        rows = self._knowledge.find(raw, asked)
        return None if rows is None else self._transfers.fetch(_stacked(rows, asked, raw, outputs))

    def _call(self, question: Question) -> Asking[Outputs]:
        session, outputs = question.session, question.request.outputs
        raw = raw_inputs(question.request)
        own = (yield from self._own(session, raw)) if needs_own_states(session.settings, outputs) else None
        found = yield from self._observed(raw, [port for port in outputs if port not in CONVERSATION_PORTS])
        found |= yield from Conversation(session.codec, session.settings).ports(question.leaves, own, outputs)
        return {name: found[name] for name in outputs}

    def _own(self, session: Session, raw: Tensors) -> Asking[Own]:
        ports = self._own_ports(session)
        rows = yield from self._rows(raw, ports)
        enter, exit_ = (stack_rows(rows, port).float() for port in ports[:2])
        return Own(enter, exit_, _mask(rows, enter), _mask(rows, exit_), is_whole=MASK not in ports)

    def _own_ports(self, session: Session) -> list[str]:
        """The teacher's own states at entry and exit, and their mask where it hides something."""
        settings = session.settings
        ports = [f"hidden.{layer}" for layer in (settings.entry, settings.exit)]
        if settings.pooling == "mean" and settings.message_tokens and settings.inject == "replace":
            # the means that the session would pool them to: small, and shared by all sessions that do
            return [f"{port}.mean{settings.message_tokens}" for port in ports]
        return [*ports, MASK] if self._teacher.family.modality == "text" else ports

    def _observed(self, raw: Tensors, outputs: Sequence[str]) -> Asking[Outputs]:
        if not outputs:
            return {}
        asked = self._asked(outputs)
        return _stacked((yield from self._rows(raw, asked)), asked, raw, outputs)

    def _asked(self, outputs: Sequence[str]) -> list[str]:
        """The ports that are kept, of those asked for: all logits where they are few, a language model's largest alone."""
        if self._teacher.heads == ("causal_lm",):
            return sorted(set(outputs))
        return sorted({"logits" if port.startswith("logits.top") else port for port in outputs})

    def _rows(self, raw: Tensors, ports: Sequence[str]) -> Asking[list[Row]]:
        rows: list[Row] = yield _Complete(self._knowledge.look_up(raw, ports))
        return rows

    def _complete(self, asks: Sequence[_Complete]) -> list[list[Row]]:
        return self._knowledge.complete([ask.look_up for ask in asks])


def raw_inputs(request: ForwardRequest) -> dict[str, torch.Tensor]:
    """The teacher's own inputs of a Forward, without the student's message."""
    return {name: tensor for name, tensor in request.inputs.items() if name not in MESSAGE_INPUTS}


def _stacked(rows: list[Row], asked: Sequence[str], raw: Tensors, outputs: Sequence[str]) -> Outputs:
    tokens = raw["input_ids"].shape[1] if "input_ids" in raw else None
    found = {port: stack_rows(rows, port, tokens) for port in asked}
    found = {port: value.float() if value.is_floating_point() else value for port, value in found.items()}
    return {port: found[port] if port in found else top(found["logits"], port) for port in outputs}


def _finite(found: Sequence[Outputs | Exception], transfers: Transfers) -> list[Outputs | Exception]:
    """Puts an error in place of outputs of which one is NaN or infinite; waits for the device once."""
    named = [
        (place, name, value)
        for place, outputs in enumerate(found)
        if not isinstance(outputs, Exception)
        for name, value in outputs.items()
        if value.is_floating_point() and value.numel()
    ]
    if not named:
        return list(found)
    ends = [torch.stack(torch.aminmax(value.detach())).float() for _, _, value in named]  # NaN if any number is
    finite = transfers.read(torch.stack(ends).isfinite().all(1))
    checked = list(found)
    for (place, name, _), is_finite in zip(named, finite, strict=True):
        if not is_finite:
            checked[place] = NonFiniteError(
                f"output port {name!r} came out as NaN or infinity; lower the message's scale"
            )
    return checked


def _mask(rows: list[Row], states: torch.Tensor) -> torch.Tensor:
    if MASK in rows[0]:
        return stack_rows(rows, MASK).bool()
    return _all_real(states)


def _all_real(states: torch.Tensor) -> torch.Tensor:
    return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
