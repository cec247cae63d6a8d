from __future__ import annotations

from typing import Any

import pytest

from teacher_server.jobs import Job
from teacher_server.policy import next_batch
from teaching_protocol import verbs
from teaching_protocol.verbs import Call


def job(request: Any, born: float, rows: int = 1, tokens: int = 3, bucket: Any = None) -> Job:
    return Job("x", None, request, Call(), rows, tokens, born, bucket=bucket)


def test_first_come_first_served() -> None:
    late, early = job(verbs.ForwardRequest(), 2.0), job(verbs.ForwardRequest(), 1.0)
    assert next_batch([late, early]).jobs == (early,)


@pytest.mark.parametrize("kind", [verbs.BackwardRequest, verbs.StepRequest, verbs.ExportRequest, verbs.ImportRequest])
def test_what_frees_memory_goes_before_an_older_forward(kind: type) -> None:
    forward, other = job(verbs.ForwardRequest(), 1.0), job(kind(), 2.0)
    assert next_batch([forward, other]).jobs == (other,)


def test_rows_and_tokens_of_a_batch() -> None:
    batch = next_batch([job(verbs.BackwardRequest(), 1.0, 2, 6)])
    assert (batch.rows, batch.tokens) == (2, 6)


def test_jobs_of_one_bucket_share_a_batch_and_others_do_not() -> None:
    jobs = [job(verbs.ForwardRequest(), float(born), bucket=bucket) for born, bucket in enumerate("abaNab")]
    jobs[3].bucket = None
    assert next_batch(jobs).jobs == (jobs[0], jobs[2], jobs[4])
    assert next_batch(jobs[3:]).jobs == (jobs[3],)


def test_the_padded_area_of_a_batch_is_bounded() -> None:
    long, short, many = (
        job(verbs.ForwardRequest(), float(born), rows, rows * tokens, "a")
        for born, (rows, tokens) in enumerate([(2, 8), (2, 4), (9, 4)])
    )
    assert next_batch([long, short, many], batch_tokens=32).jobs == (long, short)
    assert next_batch([long, short, many], batch_tokens=31).jobs == (long,)
    assert next_batch([many, long], batch_tokens=10).jobs == (long,), "one goes, however large"
