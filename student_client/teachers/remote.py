"""A teacher as an nn.Module, behind gRPC or in this process; knows no method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

import torch
from torch import nn

from student_client.connection.credentials import Credentials
from student_client.connection.route import Route
from student_client.connection.transport import GrpcTransport
from student_client.teachers.exchange import Question, exchange, placed
from student_client.teachers.sent import Sent
from student_client.teachers.session import Handle, Session, SessionOptions
from teaching_protocol import verbs
from teaching_protocol.int8 import Int8Rules
from teaching_protocol.tracing import Tracing
from teaching_protocol.verbs import TeacherVerbs

__all__ = ["InProcessTeacher", "RemoteTeacher", "SessionOptions", "Teacher"]

Tensors = Mapping[str, torch.Tensor]


class Teacher(nn.Module):
    """A session with a teacher behind any transport. Use as a context manager, or `enroll` and `leave`.

    Calls are made in the order of the code. Backward through an output sends its gradient to the
    teacher, which gathers its codec's gradients until `step`.
    """

    def __init__(self, session: Session, options: SessionOptions) -> None:
        super().__init__()
        self._session = session
        self._options = options

    @property
    def card(self) -> verbs.DescribeReply:
        """What the teacher says of itself; asked once.

        Raises:
            IncompatibleTeacher: it speaks another version of the protocol.
        """
        return self._session.card

    @property
    def session(self) -> verbs.SessionRef:
        """The session's id and epoch. The id opens the session: keep it secret."""
        return self._session.ref

    @property
    def settings(self) -> verbs.SessionSettings:
        """What the session was enrolled with."""
        return self._session.settings

    @property
    def steps(self) -> int:
        """Number of the last step."""
        return self._session.steps

    @property
    def seconds(self) -> float:
        """Seconds the teacher has computed for this session."""
        return self._session.seconds

    @property
    def costs(self) -> tuple[float, int, int, int]:
        """Compute seconds of the teacher for this session, rows it was asked about, bytes sent and received."""
        transport = self._session.transport
        sent, received = getattr(transport, "bytes_sent", 0), getattr(transport, "bytes_received", 0)
        return self._session.seconds, self._session.rows, sent, received

    @property
    def wait_s(self) -> float:
        """Seconds this side has waited for Forward and Backward; `observe` is not counted."""
        return self._session.wait_s

    def trace(self, tracing: Tracing) -> None:
        """Has calls over the network make spans from now on."""
        if isinstance(self._session.transport, GrpcTransport):
            self._session.transport.tracing = tracing

    @property
    def place(self) -> str:
        """Where calls go now, for sentences; empty for a teacher in this process."""
        return self._session.place

    @property
    def has_gathered(self) -> bool:
        """Whether a Backward was sent since the last step."""
        return self._session.has_gathered

    def describe(self, limit_s: float = math.inf) -> verbs.DescribeReply:
        """Asks for the card anew, `limit_s` seconds at most: after a restart another teacher may serve at the address."""
        return self._session.describe(limit_s)

    def move_on(self) -> None:
        """Connects to the teacher's next address, or anew to the only one; the session has to be opened there."""
        self._session.move_on()

    def move_on_untried(self) -> bool:
        """`move_on`, if there is an address where the teacher was not looked for yet; whether there was."""
        return self._session.move_on_untried()

    def has_better_place(self) -> bool:
        """Whether a replica serves by now to which this session belongs rather than to the one it is at."""
        return self._session.has_better_place()

    def move_if_better(self) -> None:
        """Leaves the replica for the better one that was found last, if any; the session has to be opened there."""
        self._session.move_if_better()

    def enroll(self, state: bytes = b"", resume: str = "") -> Self:
        """Opens the session, from exported state where given, or takes over the live session of id `resume`."""
        self._session.enroll(self._options, state, resume)
        return self

    def leave(self) -> None:
        """Ends the session and the heartbeat; harmless when repeated or when the teacher is gone."""
        self._session.leave()

    def end(self) -> None:
        """`leave` that keeps the connection, for another session."""
        self._session.end()

    def forward(self, message: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Answers a message [batch, tokens, message_width]: the same shape (or `message_tokens`), differentiable."""
        inputs = {"message": message} if mask is None else {"message": message, "message_mask": mask}
        return self.forward_ports(inputs, ["answer"])["answer"]

    def forward_ports(self, inputs: Tensors, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        """Output ports for input ports, differentiable to the float message inputs and the teacher's codec."""
        return exchange(self.question(inputs, outputs))

    def question(self, inputs: Tensors, outputs: Sequence[str]) -> Question:
        """A `forward_ports` yet to be made: `exchange_many` makes those of several teachers at once."""
        return Question(self._session, inputs, tuple(outputs))

    def observe(self, inputs: Tensors, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the teacher knows about raw inputs: no gradient, cached by the server; may run in another thread."""
        device = next(iter(inputs.values())).device
        _, found = self._session.forward(inputs, tuple(outputs), False, ())
        return {name: placed(found[name], device) for name in outputs}

    def step(self, lr: float, grad_scale: float = 1.0, max_grad_norm: float = 0.0, rows: int = 0) -> float:
        """Applies the teacher-side codec's gathered gradients; gives their norm after `grad_scale`.

        Of a session of several ranks (`world_size`) each calls it, and it returns when all have: `rows` weigh its gradients.

        Raises:
            RankLost: not all ranks called it in time.
        """
        return self._session.step(lr, grad_scale, max_grad_norm, rows)

    @property
    def handle(self) -> Handle:
        """What other ranks take part in this session with. It opens the session: keep it secret."""
        return self._session.handle

    def adopt(self, handle: Handle, rank: int) -> Self:
        """Takes part, as this rank, in a session that rank 0 has enrolled (or resumed, or imported a state to) and will leave."""
        self._session.adopt(self._options, handle, rank)
        return self

    def find(self, handle: Handle) -> None:
        """Connects to where a session is served."""
        self._session.find(handle)

    def export_state(self) -> bytes:
        """The whole state of the session on the teacher's side, as safetensors bytes."""
        return self._session.export_state()

    def import_state(self, state: bytes) -> int:
        """Replaces the session's state; gives the step it stands at."""
        return self._session.import_state(state)

    def note_sent(self) -> Sent:
        """What changes the session is noted from now on, for `tell_again`; `clear` it whenever the state was taken."""
        self._session.sent = sent = Sent()
        return sent

    def tell_again(self) -> None:
        """Makes the noted calls anew, in a session that stands where the state was taken."""
        self._session.tell_again()

    def __enter__(self) -> Self:
        return self.enroll()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


class RemoteTeacher(Teacher):
    """A teacher behind gRPC.

    Args:
        address: `host:port` of a teacher server or of a fleet's directory; after the first, others that serve the same teacher,
            for `move_on`; or a route among them.
        student: this student's name, one live session each.
        compression: how float ports travel: bf16 (default), fp16, int8 (rows with a scale each), or none for float32.
        deadline_s: seconds any one call may take.
        patience_s: for how many of these seconds a teacher that does not answer is tried again.
        shared_memory: whether large messages may go through shared memory, where the teacher is on this host.
        int8_error: largest relative error of a tensor sent as int8; one that has more goes as bf16.
        credentials: CA, client certificate, token; None is no TLS, and the token of `TEACHER_TOKEN`, if any.
        options: fields of `SessionSettings`, see `SessionOptions`.
    """

    def __init__(
        self,
        address: str | Sequence[str] | Route,
        *,
        student: str,
        compression: str = "bf16",
        deadline_s: float = 60.0,
        patience_s: float = 10.0,
        shared_memory: bool = True,
        int8_error: float = Int8Rules.error_limit,
        credentials: Credentials | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        written = [address] if isinstance(address, str) else address
        route = written if isinstance(written, Route) else Route(written, student, credentials)
        transport = GrpcTransport(
            route.place.address,
            compression,
            patience_s,
            shared_memory,
            int8_error,
            credentials=credentials,
            route=route,
        )
        super().__init__(Session(transport, student, compression, deadline_s), options)


class InProcessTeacher(Teacher):
    """The same API on a teacher in this process (`teacher_server.local.local_teacher`), without a network.

    Args:
        teacher: anything with the verbs of `TeacherVerbs`.
        student: this student's name.
        deadline_s: seconds any one call may take.
        options: as of `RemoteTeacher`; nothing is compressed.
    """

    def __init__(
        self, teacher: TeacherVerbs, *, student: str, deadline_s: float = 600.0, **options: Unpack[SessionOptions]
    ) -> None:
        super().__init__(Session(teacher, student, "none", deadline_s), options)
