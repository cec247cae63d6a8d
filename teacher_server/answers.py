"""All output ports of one Forward: the conversation's and what the teacher knows about x.

Knows no call and keeps no graph.
"""

from __future__ import annotations

import torch

from teacher_server.conversation import CONVERSATION_PORTS, MESSAGE_INPUTS, Conversation, Own, needs_own_states
from teacher_server.knowledge import MASK, Knowledge, stack_rows
from teacher_server.knowledge_cache import Row
from teacher_server.sessions import Session
from teacher_server.split import FrozenTeacher
from teaching_protocol.errors import NonFiniteError
from teaching_protocol.tensors import is_finite
from teaching_protocol.verbs import ForwardRequest, Tensors

__all__ = ["Answers", "raw_inputs"]


class Answers:
    """Computes output ports for a session's Forward."""

    def __init__(self, teacher: FrozenTeacher, knowledge: Knowledge) -> None:
        self._teacher = teacher
        self._knowledge = knowledge

    def leaves(self, request: ForwardRequest) -> dict[str, torch.Tensor]:
        """The message inputs in memory of our own, float32, ready to gather gradients."""
        leaves = {}
        for name in MESSAGE_INPUTS:
            if name in request.inputs:
                tensor = request.inputs[name]
                dtype = torch.float32 if tensor.is_floating_point() else torch.bool
                placed = torch.empty(tensor.shape, dtype=dtype, device=self._teacher.device).copy_(tensor)
                leaves[name] = placed.requires_grad_(name in request.grad_inputs)
        return leaves

    def outputs(self, session: Session, request: ForwardRequest, leaves: Tensors) -> dict[str, torch.Tensor]:
        """The ports `request.outputs`, differentiable to `leaves` and the session's codec.

        Raises:
            NonFiniteError: an output came out as NaN or infinity.
        """
        raw = raw_inputs(request)
        talk = Conversation(self._teacher, session.codec, session.settings)
        own = self._own(session, raw) if needs_own_states(session.settings, request.outputs) else None
        found = self.observe(raw, request.outputs) | talk.ports(leaves, own, request.outputs)
        for name, value in found.items():
            if not is_finite(value):
                raise NonFiniteError(f"output port {name!r} came out as NaN or infinity; lower the message's scale")
        return {name: found[name] for name in request.outputs}

    def _own(self, session: Session, raw: Tensors) -> Own:
        settings = session.settings
        enter, exit_ = (f"hidden.{layer}" for layer in (settings.entry, settings.exit))
        if settings.pooling == "mean" and settings.message_tokens and settings.inject == "replace":
            return self._pooled(raw, *(f"{port}.mean{settings.message_tokens}" for port in (enter, exit_)))
        ports = [enter, exit_, MASK] if self._teacher.family.modality == "text" else [enter, exit_]
        rows = self._knowledge.rows(raw, ports)
        found = {port: stack_rows(rows, port).float() for port in {enter, exit_}}
        return Own(found[enter], found[exit_], _mask(rows, found[enter]), _mask(rows, found[exit_]))

    def _pooled(self, raw: Tensors, enter: str, exit_: str) -> Own:
        """Own states as the means that the session would pool them to: small, and shared by all sessions that do."""
        rows = self._knowledge.rows(raw, [enter, exit_])
        found = {port: stack_rows(rows, port).float() for port in {enter, exit_}}
        return Own(found[enter], found[exit_], _all_real(found[enter]), _all_real(found[exit_]))

    def observe(self, raw: Tensors, outputs: tuple[str, ...], *, cached_only: bool = False) -> dict[str, torch.Tensor]:
        """The student-independent ports among `outputs`, from the cache where they are.

        With `cached_only` no model runs, and an empty mapping says that something was missing.
        """
        wanted = [port for port in outputs if port not in CONVERSATION_PORTS]
        if not wanted:
            return {}
        asked = sorted({"logits" if port.startswith("logits.top") else port for port in wanted})
        rows = self._knowledge.find(raw, asked) if cached_only else self._knowledge.rows(raw, asked)
        if rows is None:
            return {}
        tokens = raw["input_ids"].shape[1] if "input_ids" in raw else None
        found = {port: stack_rows(rows, port, tokens) for port in asked}
        found = {port: value.float() if value.is_floating_point() else value for port, value in found.items()}
        return {port: _top(found["logits"], port) if port.startswith("logits.top") else found[port] for port in wanted}


def raw_inputs(request: ForwardRequest) -> dict[str, torch.Tensor]:
    """The teacher's own inputs of a Forward, without the student's message."""
    return {name: tensor for name, tensor in request.inputs.items() if name not in MESSAGE_INPUTS}


def _mask(rows: list[Row], states: torch.Tensor) -> torch.Tensor:
    if MASK in rows[0]:
        return stack_rows(rows, MASK).bool()
    return _all_real(states)


def _all_real(states: torch.Tensor) -> torch.Tensor:
    return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)


def _top(logits: torch.Tensor, port: str) -> torch.Tensor:
    """[batch, 2, k]: the k largest logits and, as floats, their places."""
    count = int(port.removeprefix("logits.top"))
    values, places = logits.topk(min(count, logits.shape[-1]), dim=-1)
    return torch.stack([values, places.to(values.dtype)], dim=-2)
