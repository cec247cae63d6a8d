"""What is done when a teacher cannot be reached: the rule, and the waiting of one of them; asks nothing itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import tenacity

from student_client.teachers.members import NOT_YET, Member
from teaching_protocol.errors import TeacherUnavailable, TeachingError

__all__ = ["Absence", "wait_for"]

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0


@dataclass(frozen=True)
class Absence:
    """What is done when a teacher cannot be reached.

    Attributes:
        rule: fail raises at once; wait holds the step until the teacher is back; skip goes on without it, as long as
            another one is there, and lets it join again later.
        wait_s: seconds `wait` waits for one teacher in one call of all, before it fails.
        retry_s: seconds from one attempt of `skip` to reach it to the next.
        say: is told in a sentence who is missing and who is back.
        patience_s: seconds a run waits for lost teachers, without progress, before it ends; 0 ends it at once.
        setting: the field of the configuration that says so.
    """

    rule: Literal["fail", "wait", "skip"] = "fail"
    wait_s: float = 60.0
    retry_s: float = 3.0
    say: Callable[[str], None] = lambda sentence: None
    patience_s: float = 0.0
    setting: str = "teacher.patience_s"


def wait_for(member: Member, error: TeachingError, absence: Absence, until: float) -> None:
    """Returns once the teacher has joined again.

    Args:
        member: that is missing.
        error: why.
        absence: how long it may be, and who is told.
        until: the time of the monotonic clock at which it is given up.

    Raises:
        TeacherUnavailable: it has not come back by then.
    """
    absence.say(f"the teacher {member.name!r} is missing ({error}); waiting up to {absence.wait_s:g} s for it")
    try:
        if time.monotonic() >= until:
            raise error
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(NOT_YET),
            wait=tenacity.wait_random_exponential(_FIRST_WAIT_S, _LONGEST_WAIT_S),
            stop=lambda _: time.monotonic() >= until,
            reraise=True,
        ):
            with attempt:
                member.join()
        absence.say(f"the teacher {member.name!r} is there again")
    except NOT_YET as last:
        raise TeacherUnavailable(
            f"the teacher {member.name!r} did not come back within {absence.wait_s:g} s ({last}); start it again "
            "and go on from the last checkpoint, or raise method.committee.wait_s"
        ) from last
