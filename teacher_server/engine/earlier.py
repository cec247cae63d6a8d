"""What a batch meets before it runs: its sessions held at rest, and the replies that calls of before have left; runs no model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from teacher_server.jobs import Batch, Job
from teaching_protocol.errors import CallConflict, SessionNotFound, StaleEpoch
from teaching_protocol.verbs import ForwardRequest, ImportRequest

__all__ = ["at_work", "known_reply"]


def known_reply(job: Job) -> Any | None:
    """The reply that this very call got before, or None for a new one.

    Raises:
        SessionNotFound, StaleEpoch: the session is not the caller's any more.
        CallConflict: the id was used before for another call, or its reply was let go.
    """
    session, request = job.session, job.request
    assert session is not None, "jobs without a session do not reach the engine"
    if session.closed:
        raise SessionNotFound("the session ended while this call waited")
    if not session.answers_to(request.session.epoch, request.call_id if isinstance(request, ImportRequest) else ""):
        raise StaleEpoch("the session was resumed by another client, or imported a state, while this call waited")
    if not job.has_effect:
        return None
    if request.call_id in session.replies:
        return session.replies.find(request.call_id, job.mark)
    if request.call_id in (session.calls if isinstance(request, ForwardRequest) else session.risen):
        raise CallConflict(
            f"{job.method} {request.call_id!r} was made before and its reply was let go; give each call an id of its own"
        )
    return None


@contextmanager
def at_work(batch: Batch) -> Iterator[None]:
    """Holds the sessions of a batch, so that no epoch rises in the midst of it."""
    with ExitStack() as held:
        for session in {id(job.session): job.session for job in batch.jobs}.values():
            if session is not None:
                held.enter_context(session.at_rest)
        yield
