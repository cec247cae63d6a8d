"""The teacher's side of the conversation as equations: named inputs to named outputs.

Notation of docs/methods.md. Differentiable from the outputs to the message and the codec; the
teacher's own states on the raw input enter as constants. What can be shared with other students' calls (codecs, the
span) is asked for and not run here. Knows no session, no call, no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from teacher_server.engine.asks import Asking, decode, encode, through
from teacher_server.families import LayerSpan
from teacher_server.sessions.codecs import TeacherCodec
from teaching_protocol.errors import InvalidTensor, UnknownPort
from teaching_protocol.verbs import SessionSettings

__all__ = ["CONVERSATION_PORTS", "MESSAGE_INPUTS", "Conversation", "Own", "needs_own_states"]

MESSAGE_INPUTS = ("message", "message_mask", "message_exit", "message_gate")
CONVERSATION_PORTS = (
    "answer",
    "answer_state",
    "cross_consistency",
    "state_consistency",
    "teacher_message.enter",
    "teacher_message.exit",
)

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Own:
    """The teacher's own states on x at both ends of the span, H^h_l and H^h_u, and their mask."""

    enter: torch.Tensor  # [batch, tokens, width at entry]
    exit: torch.Tensor  # [batch, tokens of exit, width at exit]
    enter_mask: torch.Tensor  # [batch, tokens] bool
    exit_mask: torch.Tensor
    is_whole: bool = False  # known without a look at the masks: no token is hidden


def needs_own_states(settings: SessionSettings, outputs: Sequence[str]) -> bool:
    """Whether these outputs are about the raw input x, and not about the message alone."""
    about_message = {"answer", "answer_state"}
    if settings.answer_from == "message" and settings.inject == "replace":
        return any(port in CONVERSATION_PORTS and port not in about_message for port in outputs)
    return any(port in CONVERSATION_PORTS for port in outputs)


@dataclass(frozen=True)
class Conversation:
    """One student's conversation with the teacher; `ports` answers for one call."""

    codec: TeacherCodec
    settings: SessionSettings

    @property
    def span(self) -> LayerSpan:
        """The layers a message runs through."""
        return LayerSpan(self.settings.entry, self.settings.exit)

    def ports(self, inputs: Tensors, own: Own | None, outputs: Sequence[str]) -> Asking[dict[str, torch.Tensor]]:
        """Finds the conversation ports among `outputs`.

        Args:
            inputs: `message` [B, T, message_width] float32 and what goes with it.
            own: the teacher's own states, when a port needs them.
            outputs: names of ports; those that are not of the conversation are left alone.

        Raises:
            UnknownPort: a port needs an input that was not sent.
            InvalidTensor: message and input do not fit together.
        """
        found: dict[str, torch.Tensor] = {}
        if "answer" in outputs or "answer_state" in outputs:
            state, mask = yield from self._answer_state(inputs, own)
            found["answer_state"] = state
            if "answer" in outputs:
                found["answer"] = (yield from encode(self.codec, state)) * mask[..., None]  # m_h = Enc_h(S_u)
        if own is not None:
            found |= yield from self._about_input(inputs, own, outputs)
        return {name: found[name] for name in outputs if name in found}

    def _answer_state(self, inputs: Tensors, own: Own | None) -> Asking[tuple[torch.Tensor, torch.Tensor]]:
        message = _needed(inputs, "message", "answer")
        mask = inputs.get("message_mask", torch.ones(message.shape[:2], dtype=torch.bool, device=message.device))
        gate = inputs.get("message_gate", torch.ones(len(message), device=message.device))[:, None, None]
        read = yield from decode(self.codec, message, self.codec.shape.enter_width)  # S_l = Dec_h(m_g)
        if self.settings.inject == "replace":
            state = (yield from through(read, inputs.get("message_mask"), self.span)) * gate  # S_u = h_up(S_l)
            state, mask = self._to_message_tokens(state, _mask_after(state, mask))
        else:
            is_whole = "message_mask" not in inputs
            state, mask = yield from self._injected(read * gate, mask, is_whole, _known(own))
        if self.settings.answer_from == "message_and_input":
            theirs, theirs_mask = self.codec.pool(_known(own).exit, _known(own).exit_mask)
            _same_tokens(state, theirs)
            state, mask = state * mask[..., None] + theirs, theirs_mask  # ours: the answer is about x, too
        return state, mask

    def _to_message_tokens(self, state: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = self.settings.message_tokens
        if count in (0, state.shape[1]):
            return state, mask
        return self.codec.pool(state, mask)

    def _injected(
        self, read: torch.Tensor, mask: torch.Tensor, is_whole: bool, own: Own
    ) -> Asking[tuple[torch.Tensor, torch.Tensor]]:
        """The message joins the teacher's own entry states: added to them, or put before them (ours)."""
        tokens = read.shape[1]
        if self.settings.inject == "prefix":
            states = torch.cat([read, own.enter], dim=1)
            seen = None if is_whole and own.is_whole else torch.cat([mask, own.enter_mask], dim=1)
            joined = yield from through(states, seen, self.span)
            return self._to_message_tokens(joined[:, :tokens], mask)
        if tokens not in (1, own.enter.shape[1]):
            raise InvalidTensor(
                f"message: {tokens} tokens cannot be added to the teacher's {own.enter.shape[1]}; "
                "send one token, as many as the teacher has, or enrol with inject='prefix'"
            )
        seen = None if own.is_whole else own.enter_mask
        added = yield from through(own.enter + read * mask[..., None], seen, self.span)
        return self._to_message_tokens(added, own.exit_mask)

    def _about_input(self, inputs: Tensors, own: Own, outputs: Sequence[str]) -> Asking[dict[str, torch.Tensor]]:
        enter, enter_mask = self.codec.pool(own.enter, own.enter_mask)
        exit_, exit_mask = self.codec.pool(own.exit, own.exit_mask)
        found = {}
        if "teacher_message.enter" in outputs:
            found["teacher_message.enter"] = (yield from encode(self.codec, enter)) * enter_mask[..., None]
        if "teacher_message.exit" in outputs:
            found["teacher_message.exit"] = (yield from encode(self.codec, exit_)) * exit_mask[..., None]
        if "state_consistency" in outputs:
            entering = yield from self._returned(enter, enter_mask)
            found["state_consistency"] = entering + (yield from self._returned(exit_, exit_mask))
        if "cross_consistency" in outputs:
            message = _needed(inputs, "message", "cross_consistency")
            terms = [(yield from self._read_error(message, enter, enter_mask))]
            if "message_exit" in inputs:
                terms.append((yield from self._read_error(inputs["message_exit"], exit_, exit_mask)))
            found["cross_consistency"] = torch.stack(terms).mean()
        return found

    def _returned(self, state: torch.Tensor, mask: torch.Tensor) -> Asking[torch.Tensor]:
        """L_SC, teacher side: || Dec_h(Enc_h(H)) - H ||^2."""
        again = yield from decode(self.codec, (yield from encode(self.codec, state)), state.shape[-1])
        return _state_error(again, state.detach(), mask)

    def _read_error(self, message: torch.Tensor, state: torch.Tensor, mask: torch.Tensor) -> Asking[torch.Tensor]:
        """|| Dec_h(m_g) - H^h ||^2: what the teacher reads against what it would have thought (ours)."""
        _same_tokens(message, state)
        read = yield from decode(self.codec, message, state.shape[-1])
        return _state_error(read, state.detach(), mask)


def _state_error(found: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over features and real tokens of the squared error of LayerNormed states (ours)."""
    width = (found.shape[-1],)
    error = (functional.layer_norm(found, width) - functional.layer_norm(wanted, width)).square().mean(-1)
    return (error * mask).sum() / mask.sum().clamp_min(1)


def _mask_after(state: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mask of a span's end: the one of its start, or all ones where strides made the grid smaller."""
    if state.shape[1] == mask.shape[1]:
        return mask
    return torch.ones(state.shape[:2], dtype=torch.bool, device=state.device)


def _same_tokens(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    if ours.shape[1] != theirs.shape[1]:
        raise InvalidTensor(
            f"message: {ours.shape[1]} tokens, but the teacher's own state has {theirs.shape[1]}; "
            "enrol with message_tokens equal to the tokens of your message"
        )


def _needed(inputs: Tensors, name: str, port: str) -> torch.Tensor:
    if name not in inputs:
        raise UnknownPort(f"output port {port!r} needs the input port {name!r}, which was not sent")
    return inputs[name]


def _known(own: Own | None) -> Own:
    assert own is not None, "needs_own_states said these ports need no states of the teacher's own"
    return own
