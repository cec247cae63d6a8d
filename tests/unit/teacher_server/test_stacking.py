from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_server.engine.stacking import apply_stacked
from teacher_server.sessions.codecs import CodecShape, TeacherCodec


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.booleans(),
)
def test_stacked_codecs_are_codecs_one_by_one(sizes: list[tuple[int, int]], depth: int, is_encoder: bool) -> None:
    codecs = [TeacherCodec(CodecShape(6, 6, 4, depth=depth), seed).double() for seed in range(len(sizes))]
    parts = [codec.encoder(6) if is_encoder else codec.decoder(6) for codec in codecs]
    width = 6 if is_encoder else 4
    given_ = [torch.randn(*size, width, dtype=torch.float64, requires_grad=True) for size in sizes]
    found, wanted = (
        apply_stacked(list(zip(parts, given_, strict=True))),
        [m(x) for m, x in zip(parts, given_, strict=True)],
    )
    targets = [*given_, *(parameter for part in parts for parameter in part.parameters())]
    sent = [torch.randn_like(each) for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
    for one, other in zip(
        torch.autograd.grad(found, targets, sent), torch.autograd.grad(wanted, targets, sent), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("broken", [0, 2])
def test_a_broken_codec_breaks_no_other(broken: int) -> None:
    codecs = [TeacherCodec(CodecShape(6, 6, 4), seed) for seed in range(3)]
    with torch.no_grad():
        codecs[broken].encoder(6)[1].weight.fill_(float("nan"))
    states = [torch.randn(2, 3, 6, requires_grad=True) for _ in codecs]
    found = apply_stacked([(codec.encoder(6), each) for codec, each in zip(codecs, states, strict=True)])
    grads = torch.autograd.grad(found, states, [torch.ones_like(each) for each in found])
    for place, (message, grad) in enumerate(zip(found, grads, strict=True)):
        assert bool(message.isfinite().all() & grad.isfinite().all()) is (place != broken)
