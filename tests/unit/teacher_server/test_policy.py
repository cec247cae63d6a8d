from __future__ import annotations

from typing import Any

import pytest

from teacher_server.jobs import Job
from teacher_server.policy import next_batch
from teaching_protocol import verbs
from teaching_protocol.verbs import Call


def job(request: Any, born: float, rows: int = 1, tokens: int = 3) -> Job:
    return Job("x", None, request, Call(), rows, tokens, born)


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
