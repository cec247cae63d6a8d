"""One student's session with a teacher over any transport: lease, deadlines, call ids, clocks; no autograd."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar

import torch

from student_client.connection.transport import GrpcTransport
from student_client.teachers.sent import Gathered, Sent
from teaching_protocol import verbs
from teaching_protocol.errors import IncompatibleTeacher, InputsNeeded, TeachingError
from teaching_protocol.verbs import PROTOCOL_VERSION, Call, OptimizerSettings, SessionSettings, TeacherVerbs

__all__ = ["Handle", "Session", "SessionOptions"]

Tensors = Mapping[str, torch.Tensor]
T = TypeVar("T")

_LEAVE_S = 2.0


class SessionOptions(TypedDict, total=False):
    """Keywords of a teacher: the fields of `SessionSettings`; entry and exit default to the card's."""

    task: str
    message_width: int
    message_tokens: int
    pooling: str
    entry: int
    exit: int
    codec_depth: int
    answer_from: str
    inject: str
    optimizer: OptimizerSettings
    seed: int
    world_size: int


class Handle(TypedDict):
    """A session as other ranks of the student take part in it: its id and epoch, its last step, where it is served."""

    session_id: str
    epoch: int
    step: int
    address: str


class Session:
    """The client's end of a session.

    Attributes:
        ref: id and epoch. The id opens the session: keep it secret.
        settings: what the session was enrolled with.
        steps: number of the last Step.
        seconds: seconds the teacher has computed for this session.
        wait_s: seconds this side has waited for Forward and Backward.
        rows: rows the teacher was asked about.
        rank: who of the ranks that share the session this is; 0 enrols and leaves.
        has_gathered: whether a Backward was sent since the last Step, so that the state is not that between two steps.
        sent: notes what changes the session, for `tell_again`; None notes nothing.
    """

    def __init__(self, transport: TeacherVerbs, student: str, compression: str, deadline_s: float) -> None:
        self.transport = transport
        self.student = student
        self.ref = verbs.SessionRef()
        self.settings = SessionSettings()
        self.steps = 0
        self.seconds = self.wait_s = 0.0
        self.rows = self.rank = 0
        self.has_gathered = False
        self.sent: Sent | None = None
        self._compression = compression
        self._deadline_s = deadline_s
        self._card: verbs.DescribeReply | None = None
        self._numbers = itertools.count(1)
        self._run = uuid.uuid4().hex[:8]
        self._opening: tuple[bytes, str] | None = None
        self._ending = threading.Event()
        self._counting = threading.Lock()

    @property
    def card(self) -> verbs.DescribeReply:
        """What the teacher says of itself; asked once.

        Raises:
            IncompatibleTeacher: it speaks another version of the protocol.
        """
        return self._card or self.describe()

    def describe(self, limit_s: float = math.inf) -> verbs.DescribeReply:
        """Asks for the card, even where it is known: another teacher may serve by now. Waits for `limit_s` at most."""
        call = Call(time.monotonic() + min(limit_s, self._deadline_s))
        card = self.transport.describe(verbs.DescribeRequest(), call)
        if card.protocol_version != PROTOCOL_VERSION:
            raise IncompatibleTeacher(
                f"the teacher speaks protocol version {card.protocol_version}, this client {PROTOCOL_VERSION}; "
                "install the same release of talking-models on both sides"
            )
        self._card = card
        return card

    def enroll(self, options: SessionOptions, state: bytes, resume: str) -> None:
        """Opens the session, from exported state where given, or takes over the live session `resume`."""
        card = self.card
        if isinstance(self.transport, GrpcTransport):
            self.transport.message_bytes = card.limits.message_bytes
        if self._compression not in card.compressions:
            raise IncompatibleTeacher(
                f"the teacher takes the compressions {', '.join(card.compressions)}, but this student was told to send "
                f"{self._compression}; set teacher.compression to one of them"
            )
        call_id = self._enroll_id(state, resume)
        request = verbs.EnrollRequest(self.student, self._settings(card, options), resume, state, call_id)
        reply = self.transport.enroll(request, self._call())
        self._opening = None
        self.ref, self.steps, self.settings = reply.session, reply.step, reply.settings
        self.has_gathered = bool(resume)  # by whoever had it
        self._start_heartbeat(reply.lease_s)

    @property
    def place(self) -> str:
        """Where calls go now, for sentences; empty for a teacher in this process."""
        return str(self.transport.route.place) if isinstance(self.transport, GrpcTransport) else ""

    @property
    def handle(self) -> Handle:
        """What another rank takes part in the session with."""
        address = getattr(self.transport, "address", "")
        return Handle(session_id=self.ref.session_id, epoch=self.ref.epoch, step=self.steps, address=address)

    def find(self, handle: Handle) -> None:
        """Connects to where the session is served."""
        if isinstance(self.transport, GrpcTransport):
            self.transport.go_to(handle["address"])

    def adopt(self, options: SessionOptions, handle: Handle, rank: int) -> None:
        """Takes part in a session that rank 0 has opened, and keeps alive, as another rank."""
        card = self.card
        if isinstance(self.transport, GrpcTransport):
            self.transport.message_bytes = card.limits.message_bytes
        self.rank, self.settings = rank, self._settings(card, options)
        self.ref, self.steps = verbs.SessionRef(handle["session_id"], handle["epoch"]), handle["step"]
        self.has_gathered = False

    def move_on(self) -> None:
        """Connects to the next address of the teacher; the session has to be opened there."""
        if isinstance(self.transport, GrpcTransport):
            self.transport.move_on()

    def move_on_untried(self) -> bool:
        """`move_on`, if there is an address where the teacher was not looked for yet; whether there was."""
        if not isinstance(self.transport, GrpcTransport) or not self.transport.route.has_untried:
            return False
        self.transport.move_on()
        return True

    def has_better_place(self) -> bool:
        """Whether the session belongs to another replica by now."""
        return isinstance(self.transport, GrpcTransport) and self.transport.route.look()

    def move_if_better(self) -> None:
        """Ends the session here and connects to where it belongs, if `has_better_place` found that last."""
        if isinstance(self.transport, GrpcTransport) and self.transport.route.has_better:
            self.end()
            self.transport.move_if_better()

    def leave(self) -> None:
        """Ends the session and the heartbeat; harmless when repeated or when the teacher is gone."""
        self.end()
        if isinstance(self.transport, GrpcTransport):
            self.transport.close()

    def end(self) -> None:
        """`leave` that keeps the connection, for another session."""
        self._ending.set()
        if self.rank:
            self.ref = verbs.SessionRef()
        elif self.ref.session_id:
            ref, self.ref = self.ref, verbs.SessionRef()
            with contextlib.suppress(TeachingError):  # else the lease ends it
                self.transport.leave(verbs.LeaveRequest(ref), Call(time.monotonic() + min(_LEAVE_S, self._deadline_s)))

    def forward(
        self,
        inputs: Tensors,
        outputs: tuple[str, ...],
        backward_follows: bool,
        grad_inputs: tuple[str, ...],
    ) -> tuple[str, Tensors]:
        """Sends a Forward; gives its call id and its outputs."""
        call_id = self._next_id()
        request = verbs.ForwardRequest(
            self.ref, call_id, outputs, backward_follows, grad_inputs, inputs, self._compression, self.rank
        )
        reply = self.transport.forward(request, self._call())
        self._count(reply.compute_s, rows=len(next(iter(inputs.values()))))
        return call_id, reply.outputs

    def backward(self, forward_id: str, grads: Tensors, again: Mapping[str, Any]) -> Tensors:
        """Sends a Backward; with the Forward `again` (outputs, grad_inputs, inputs) if the server has let go of it."""
        self.has_gathered = True
        facts = {"forward_id": forward_id, "grads": grads, "compression": self._compression, "rank": self.rank}
        try:
            reply = self._send_backward(facts)
        except InputsNeeded:
            reply = self._send_backward({**facts, **again})
        self._count(reply.compute_s)
        if self.sent is not None:
            self.sent.gathered(again["outputs"], again["grad_inputs"], again["inputs"], grads)
        return reply.grads

    def waiting(self, job: Callable[[], T]) -> T:
        """What a job gives, the seconds it took in `wait_s`."""
        began = time.monotonic()
        found = job()
        self.wait_s += time.monotonic() - began
        return found

    def step(self, lr: float, grad_scale: float, max_grad_norm: float, rows: int = 0) -> float:
        """Sends the next Step; gives the gradient norm."""
        request = verbs.StepRequest(self.ref, self.steps + 1, lr, grad_scale, max_grad_norm, self.rank, rows)
        reply = self.transport.step(request, self._call())
        self.steps, self.has_gathered = reply.step, False
        if self.sent is not None:
            self.sent.stepped(lr, grad_scale, max_grad_norm)
        return reply.grad_norm

    def tell_again(self) -> None:
        """Makes the calls anew that were noted since the state this session was opened with."""
        told, self.sent = self.sent, None
        try:
            for call in [] if told is None else told.calls:
                if isinstance(call, Gathered):
                    forward_id, _ = self.forward(call.inputs, call.outputs, True, call.grad_inputs)
                    self.backward(forward_id, call.grads, {})
                else:
                    self.step(call.lr, call.grad_scale, call.max_grad_norm)
        finally:
            self.sent = told

    def export_state(self) -> bytes:
        """The session's whole state."""
        return self.transport.export(verbs.ExportRequest(self.ref), self._call()).state

    def import_state(self, state: bytes) -> int:
        """Replaces the session's state; gives the step it stands at. What is still under way is refused from then on."""
        # one id for all attempts from one epoch, as for a session that is taken over
        call_id = f"{self._run}-import-{self.ref.epoch}"
        reply = self.transport.import_(verbs.ImportRequest(self.ref, state, call_id, self.steps), self._call())
        if reply.session.session_id:  # else a teacher of before, which knows no new epoch
            self.ref = reply.session
        self.steps, self.has_gathered = reply.step, False
        return self.steps

    def _settings(self, card: verbs.DescribeReply, options: SessionOptions) -> SessionSettings:
        """What the session is enrolled with.

        Raises:
            IncompatibleTeacher: the teacher takes fewer ranks.
        """
        ranks = options.get("world_size", 1)
        if ranks > max(1, card.limits.ranks):
            raise IncompatibleTeacher(
                f"the teacher lets {max(1, card.limits.ranks)} ranks share a session, but this student has {ranks}; start fewer, or "
                "raise the server's session_permits"
            )
        fields: dict[str, Any] = {"entry": card.entry, "exit": card.exit, **options}
        return SessionSettings(**fields)

    def _enroll_id(self, state: bytes, resume: str) -> str:
        """One id for all attempts at the same session: one whose reply was lost is not in the way, one that is late fences nobody off.

        No id holds the session's own, which opens it: ids of calls stand in logs.
        """
        if resume:
            return f"{self._run}-resume-{self.ref.epoch}"
        if self._opening is None or self._opening[0] != state:
            self._opening = state, uuid.uuid4().hex
        return self._opening[1]

    def _call(self) -> Call:
        return Call(time.monotonic() + self._deadline_s)

    def _next_id(self) -> str:
        return f"{self._run}-{next(self._numbers)}"

    def _send_backward(self, facts: Mapping[str, Any]) -> verbs.BackwardReply:
        return self.transport.backward(verbs.BackwardRequest(self.ref, self._next_id(), **facts), self._call())

    def _count(self, seconds: float, rows: int = 0) -> None:
        with self._counting:  # calls may be under way in several threads
            self.seconds += seconds
            self.rows += rows

    def _start_heartbeat(self, lease_s: float) -> None:
        self._ending.set()  # of a session that was lost
        self._ending = ending = threading.Event()
        jitter = random.Random()  # of its own: others may look at the state of the common one

        def beat() -> None:
            while not ending.wait(lease_s / 3 * (0.75 + 0.25 * jitter.random())):
                try:
                    self.transport.renew(verbs.RenewRequest(self.ref), Call(time.monotonic() + lease_s / 3))
                except TeachingError:
                    continue  # the next call tells the caller

        threading.Thread(target=beat, name=f"lease-{self.student}", daemon=True).start()
