"""Every RPC with requests that a machine made up: good ones changed in some fields, and ones that are nonsense throughout."""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teaching_protocol import verbs
from teaching_protocol.errors import DeadlineExceeded, InternalError, Quarantined, TeachingError
from teaching_protocol.wire import METHODS
from tests.calls import WIDTH, Caller, attempt, backward_request, forward_request, good_step, in_s
from tests.integration.processes import Address, ServerProcess
from tests.unit.teaching_protocol.values import tensors, values_of

PORTS = (
    "message",
    "message_mask",
    "message_exit",
    "message_gate",
    "input_ids",
    "attention_mask",
    "text",
    "pixel_values",
    "",
)
OUTPUTS = ("answer", "answer_state", "teacher_message.enter", "teacher_message.exit", "state_consistency", "pooled",
           "cross_consistency", "hidden.0", "hidden.4", "hidden.4.mean2", "logits", "logits.top2", "logits.top999999999",
           "logprobs.top2", "logprobs.top2.t50", "logprobs.top2.t0", "tokens.top2", "last_hidden_state",
           "attention_mask", "hidden.-1", "answer.", "x")  # fmt: skip


@pytest.fixture(scope="module")
def patient(model_folder: Callable[[str], Path]) -> Iterator[Address]:
    """A server that quarantines nobody: every request is looked at."""
    strikes = {"alone_strikes": 10**9, "refused_strikes": 10**9}
    process = ServerProcess(
        {"patient": {"model": str(model_folder("bert")), "metrics_port": -1, "max_rows": 16} | strikes}
    )
    yield process.addresses["patient"]
    assert process.close() == 0


def good_of(method: str, caller: Caller) -> Any:
    """A good request of a verb."""
    ref = caller.session
    forward = forward_request(ref)
    known = {
        "Describe": lambda: verbs.DescribeRequest(),
        "Enroll": lambda: verbs.EnrollRequest("fuzzed", caller.settings, ref.session_id),
        "Forward": lambda: forward,
        "Backward": lambda: backward_request(caller.forward()[0]),
        "Step": lambda: verbs.StepRequest(ref, 1, 0.01),
        "Export": lambda: verbs.ExportRequest(ref),
        "Import": lambda: verbs.ImportRequest(ref, caller.export()),
        "Renew": lambda: verbs.RenewRequest(ref),
        "Leave": lambda: verbs.LeaveRequest(ref),
    }
    return known[method]()


@st.composite
def inputs(draw: st.DrawFn) -> Mapping[str, torch.Tensor]:
    """Ports of known names: shapes near the right ones, any numbers."""
    rows, tokens, width = (draw(st.integers(0, most)) for most in (3, 4, WIDTH + 1))
    shape = draw(st.sampled_from([(rows, tokens, width), (2, 3, WIDTH), (rows, tokens), (rows,), ()]))
    dtype = draw(st.sampled_from([torch.float32, torch.int64, torch.bool, torch.uint8, torch.float16]))
    fill = draw(st.sampled_from([0.0, 1.0, 5.0, -1.0, 255.0, 1e30, float("nan"), float("inf")]))
    if dtype not in (torch.float32, torch.float16):
        fill = 0.0 if fill != fill else max(-1.0, min(255.0, fill))
    made = torch.full(shape, fill if dtype == torch.float32 else min(fill, 1e4)).to(dtype)
    names = draw(st.lists(st.sampled_from(PORTS), max_size=3, unique=True))
    return {name: draw(st.just(made) | tensors()) for name in names}


@st.composite
def changes(draw: st.DrawFn, cls: type[Any]) -> dict[str, Any]:
    """New values for some fields: what the field may hold, near misses where the field is known."""
    hints, found = typing.get_type_hints(cls), {}
    whole = values_of(cls)
    fields = [field.name for field in dataclasses.fields(cls) if field.name != "session"]
    for name in draw(st.lists(st.sampled_from(fields), max_size=3, unique=True)) if fields else ():
        if name in ("inputs", "grads"):
            found[name] = draw(inputs())
        elif name in ("outputs", "grad_inputs"):
            found[name] = tuple(draw(st.lists(st.sampled_from(OUTPUTS + PORTS), max_size=4)))
        elif hints[name] is float:
            found[name] = draw(st.floats())
        else:
            found[name] = getattr(draw(whole), name)
    return found


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_answer_is_a_reply_or_a_typed_error(
    method: Any, patient: Address, expected: dict[str, torch.Tensor]
) -> None:
    seen = Counter[str]()
    with Caller(patient.name, "fuzzed") as caller:

        def ask(request: Any) -> None:
            found = attempt(lambda: getattr(caller.teacher, method.verb)(request, in_s(20)))
            assert isinstance(found, method.reply | TeachingError)
            assert not isinstance(found, InternalError | DeadlineExceeded | Quarantined), (request, found)
            seen[type(found).__name__] += 1
            if isinstance(found, verbs.EnrollReply) and found.session.session_id == caller.session.session_id:
                caller.session = found.session
            elif isinstance(found, verbs.EnrollReply):
                caller.teacher.leave(verbs.LeaveRequest(found.session), in_s(20))
            elif isinstance(found, verbs.ImportReply):
                caller.session = found.session
            elif isinstance(found, verbs.LeaveReply):
                caller.session = caller.teacher.enroll(verbs.EnrollRequest("fuzzed", caller.settings), in_s(20)).session

        health = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]

        @settings(max_examples=100, deadline=None, suppress_health_check=health, derandomize=True, database=None)
        @given(changes(method.request))
        def near(changed: dict[str, Any]) -> None:
            ask(dataclasses.replace(good_of(method.name, caller), **changed))

        @settings(max_examples=20, deadline=None, suppress_health_check=health, derandomize=True, database=None)
        @given(values_of(method.request))
        def anything(request: Any) -> None:
            ask(request)

        near()
        anything()
    assert seen[method.reply.__name__] > 0
    assert len(seen) > 1 or method.name == "Describe", seen
    got = good_step(patient.name, "good")
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-5)
