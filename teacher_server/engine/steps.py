"""Steps of several students as one batch: the gathered gradients applied, once for each number; knows no queue."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from teacher_server.engine.cohorts import GraphCache
from teacher_server.engine.transfers import Transfers
from teacher_server.faults import noted
from teacher_server.metrics.metrics import Metrics
from teacher_server.sessions.optimizers import Update, update_together
from teacher_server.sessions.replies import fingerprint
from teacher_server.sessions.roll import RankedStep
from teacher_server.sessions.sessions import Grads, Session, added
from teaching_protocol.errors import NonFiniteError, StepOutOfOrder
from teaching_protocol.verbs import StepReply, StepRequest

__all__ = ["Steps", "forget_calls"]

Asked = tuple[Session, StepRequest]
Outcomes = dict[str, StepReply | Exception]


class Steps:
    """Runs Steps together; the session of an asker whose gradients are no numbers is left as it was."""

    def __init__(self, graphs: GraphCache, transfers: Transfers, metrics: Metrics) -> None:
        self._graphs = graphs
        self._transfers = transfers
        self._metrics = metrics

    def run(self, asked: Sequence[Asked]) -> list[StepReply | Exception]:
        """A reply for each, or the asker's error; the same number again gets the same reply."""
        outcomes: Outcomes = {}
        for session, request in asked:
            with noted(outcomes, session.id):
                if (known := _known(session, request)) is not None:
                    outcomes[session.id] = known
        fresh = [(session, request) for session, request in asked if session.id not in outcomes]
        try:
            totals = [_total_norm(*each) for each in fresh]
            norms = self._transfers.read(torch.stack(totals)) if totals else []
            self._apply(fresh, totals, norms, outcomes)
        finally:
            for session, _ in fresh:
                session.optimizer.zero_grad(set_to_none=True)
        for (session, request), norm in zip(fresh, norms, strict=True):
            if session.id not in outcomes:
                outcomes[session.id] = self._done(session, request, norm)
        return [outcomes[session.id] for session, _ in asked]

    def _apply(
        self, fresh: Sequence[Asked], totals: Sequence[torch.Tensor], norms: Sequence[float], outcomes: Outcomes
    ) -> None:
        updates = {}
        for (session, request), total, norm in zip(fresh, totals, norms, strict=True):
            with noted(outcomes, session.id):
                if request.grad_scale != 0:  # a step that loss scaling skips moves nothing
                    _check_finite(norm)
                    updates[session.id] = _update(session, request, total)
        try:
            update_together(list(updates.values()))
        except Exception as error:  # some weights may have moved: this must not be tried again
            outcomes |= dict.fromkeys(updates, error)

    def _done(self, session: Session, request: StepRequest, norm: float) -> StepReply:
        session.step += 1
        session.usage.stepped()
        session.gathered_by = {}
        forget_calls(session, self._graphs)
        self._metrics.session_steps.inc()
        if request.grad_scale:
            self._metrics.codec_grad_norm.observe(norm)
        reply = StepReply(session.step, norm)
        session.replies.keep(f"step-{request.step}", fingerprint(request), reply, 0)
        return reply


def forget_calls(session: Session, graphs: GraphCache) -> None:
    """After the codec has changed, open Forwards have no Backward any more."""
    graphs.drop(session.id)
    for call in session.calls.values():
        if not call.finished:
            call.stale, call.request = True, None


def _known(session: Session, request: StepRequest) -> StepReply | None:
    """The reply this very Step got before, or None for the next one."""
    known = session.replies.find(f"step-{request.step}", fingerprint(request)) if request.step == session.step else None
    if isinstance(known, StepReply):
        return known
    if request.step != session.step + 1:
        raise StepOutOfOrder(f"step {request.step} was sent, but the session's next step is {session.step + 1}")
    return None


def _total_norm(session: Session, request: StepRequest) -> torch.Tensor:
    """Puts a session's scaled gradients into place and gives their norm, a number on the device."""
    parameters = session.parameters()
    if request.grad_scale:
        gathered = _averaged(session, request)
        for parameter, grad in zip(parameters, gathered, strict=bool(gathered)):
            parameter.grad = None if grad is None else grad * request.grad_scale
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(grads) if grads else torch.zeros((), device=parameters[0].device)


def _averaged(session: Session, request: StepRequest) -> Grads:
    """The gathered gradients; of several ranks their mean by rows, summed in the order of the ranks: the same bits each time."""
    if not isinstance(request, RankedStep):
        return session.gathered
    mean: Grads = []
    for rank, rows in enumerate(request.rows_by_rank):
        if rows and rank in session.gathered_by:
            share = rows / request.rows
            part = [None if grad is None else grad * share for grad in session.gathered_by[rank]]
            mean = added(mean, part)
    return mean


def _check_finite(norm: float) -> None:
    if not math.isfinite(norm):
        raise NonFiniteError(
            "the gathered gradients are NaN or infinity in sum; lower the loss scale, and send a Step "
            "with grad_scale 0, which lets them go"
        )


def _update(session: Session, request: StepRequest, total: torch.Tensor) -> Update:
    if request.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(session.parameters(), request.max_grad_norm, total)
    return Update(session.optimizer, request.lr)
