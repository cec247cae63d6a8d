"""Which jobs may share a batch, and how large they are: told by a request before it runs; runs no model itself."""

from __future__ import annotations

from typing import Any

from teacher_server.engine.conversation import CONVERSATION_PORTS, MESSAGE_INPUTS, needs_own_states
from teacher_server.engine.merging import length_class
from teacher_server.models.split import FrozenTeacher
from teacher_server.sessions.sessions import Extent, Session
from teaching_protocol.verbs import BackwardRequest, ForwardRequest, StepRequest

__all__ = ["Buckets"]

_BYTES_A_TOKEN = 4


class Buckets:
    """Sizes up the requests to one teacher.

    Two Forwards meet when one pass over the body can serve both: the same span, similar lengths, both with or both
    without what the teacher itself knows about x, both with or both without a Backward to follow. Injection, pooling,
    message width, codec depth and optimizer may differ: they lie at the body's edges. Backwards meet when their
    Forwards could have.

    Args:
        alone: every job runs alone (deterministic mode).
    """

    def __init__(self, teacher: FrozenTeacher, max_tokens: int, *, alone: bool) -> None:
        self._takes_padding = teacher.family.takes_padding
        self._max_tokens = max_tokens
        self._alone = alone
        self._fixed_tokens = 0 if teacher.family.modality == "text" else min(max_tokens, _example_tokens(teacher))

    def extent(self, session: Session, request: Any) -> Extent:
        """How large a job is and where it belongs; notes a Forward's, and finds a Backward's by it."""
        extent = self._extent(session, request)
        return Extent(extent.rows, extent.tokens) if self._alone else extent

    def _extent(self, session: Session, request: Any) -> Extent:
        match request:
            case ForwardRequest():
                extent = self._of_forward(session, request)
                if request.backward_follows:
                    session.note_extent(request.call_id, extent)
                return extent
            case BackwardRequest():
                extent = session.extents.get(request.forward_id, Extent())
                return Extent(extent.rows, extent.tokens, extent.bucket and ("Backward", extent.bucket))
            case StepRequest():
                return Extent(bucket="Step")
        return Extent()

    def _of_forward(self, session: Session, request: ForwardRequest) -> Extent:
        settings, outputs = session.settings, request.outputs
        rows = len(next(iter(request.inputs.values())))
        own = self._own_tokens(request)
        if not any(port in CONVERSATION_PORTS for port in outputs):
            ports = tuple(sorted({"logits" if port.startswith("logits.") else port for port in outputs}))
            return Extent(rows, rows * own, ("Observe", request.backward_follows, length_class(own), ports))
        knows = length_class(own) if needs_own_states(settings, outputs) else None
        entering = self._entering_tokens(settings.inject, request, own)
        where = (settings.entry, settings.exit, length_class(entering, self._takes_padding)) if entering else None
        return Extent(rows, rows * (entering or own), ("Forward", request.backward_follows, knows, where))

    def _entering_tokens(self, inject: str, request: ForwardRequest, own: int) -> int:
        """Tokens a row has when it enters the span; 0 where none does."""
        if "message" not in request.inputs or not {"answer", "answer_state"} & set(request.outputs):
            return 0
        message = request.inputs["message"].shape[1]
        return {"replace": message, "add": own, "prefix": message + own}[inject]

    def _own_tokens(self, request: ForwardRequest) -> int:
        """Tokens of the teacher's own input; of a text they are guessed, as it is tokenized only when it runs."""
        inputs = request.inputs
        if "input_ids" in inputs:
            return min(self._max_tokens, inputs["input_ids"].shape[1])
        if "text" in inputs:
            return min(self._max_tokens, inputs["text"].shape[1] // _BYTES_A_TOKEN + 2)
        return self._fixed_tokens if any(name not in MESSAGE_INPUTS for name in inputs) else 0


def _example_tokens(teacher: FrozenTeacher) -> int:
    return teacher.states(teacher.prepare(teacher.example()), [0])["hidden.0"].shape[1]
