"""What autograd will keep of one step between its Forward and its Backward, counted without weights and without memory.

The engine's own code for an answer is run on tensors that have shapes and no numbers (torch's FakeTensorMode), and the bytes that
it saves are added up as the engine does. So the figure is of these very shapes, and holds for every family.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from teacher_server.engine.cohorts import weigh_graph
from teacher_server.engine.conversation import Conversation
from teacher_server.engine.merging import answering, together
from teacher_server.families import LayerSpan
from teacher_server.models.split import FrozenTeacher
from teacher_server.scheduling.quotas import state_bytes
from teacher_server.sessions.codecs import CodecShape, TeacherCodec, codec_parameters
from teaching_protocol.errors import InvalidSetting
from teaching_protocol.verbs import SessionSettings

__all__ = ["StepShape", "graph_bytes", "session_bytes"]


@dataclass(frozen=True)
class StepShape:
    """One student's step: rows of so many message tokens, of a width; and its session."""

    rows: int
    tokens: int
    settings: SessionSettings

    @property
    def message_bytes(self) -> int:
        """Of the message as the engine holds it, float32."""
        return 4 * self.rows * self.tokens * self.settings.message_width


def graph_bytes(teacher: FrozenTeacher, shape: StepShape, device: str = "cpu") -> int:
    """Bytes the graph of one Forward holds until its Backward, weights not counted.

    Args:
        teacher: of `empty_teacher`; its weights are of no use afterwards.
        shape: of the step.
        device: kind of device, whose kernels decide what is saved.

    Raises:
        InvalidSetting: rows and tokens that this teacher's layers cannot take.
    """
    codec = TeacherCodec(_codec_shape(teacher, shape.settings), seed=None)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
        if any(weight.is_meta for weight in teacher.model.parameters()):
            teacher.model.to_empty(device=device)
        codec.to_empty(device=device)
        size = (shape.rows, shape.tokens, shape.settings.message_width)
        message = torch.empty(size, device=device, requires_grad=True)
        held = chain(teacher.model.parameters(), teacher.model.buffers(), codec.parameters())
        with weigh_graph(map(_place, held), _place) as weight:
            calls = [Conversation(codec, shape.settings).ports({"message": message}, None, ("answer",))]
            found = together(calls, answering(teacher))[0]
    if isinstance(found, Exception):
        raise InvalidSetting(f"a step of {shape.rows} x {shape.tokens} tokens: {found}") from found
    return weight.size_bytes


def session_bytes(teacher: FrozenTeacher, settings: SessionSettings) -> int:
    """Bytes of a session's codec, gathered gradients and optimizer on the device."""
    return state_bytes(codec_parameters(_codec_shape(teacher, settings)), settings.optimizer)


def _codec_shape(teacher: FrozenTeacher, settings: SessionSettings) -> CodecShape:
    widths, span = teacher.family.widths, LayerSpan(settings.entry, settings.exit)
    ends = widths[span.start], widths[span.stop]
    return CodecShape(*ends, settings.message_width, settings.message_tokens, settings.pooling, settings.codec_depth)


def _place(tensor: torch.Tensor) -> int:
    """Which storage a tensor lies in; one without numbers has no address."""
    found: int = tensor.untyped_storage()._cdata
    return found
