from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from teacher_server.sessions.codecs import CodecShape, TeacherCodec
from teacher_server.sessions.optimizers import OPTIMIZERS, build_optimizer
from teacher_server.sessions.replies import Replies
from teacher_server.sessions.sessions import Session
from teacher_server.sessions.state import export_state, import_state
from teaching_protocol.errors import StateMismatch
from teaching_protocol.verbs import OptimizerSettings, SessionSettings

HASH = "a" * 64


def session(optimizer: str = "adamw", seed: int = 0, **settings: Any) -> Session:
    wishes = SessionSettings(
        message_width=3, seed=seed, optimizer=OptimizerSettings(optimizer, momentum=0.9), **settings
    )
    codec = TeacherCodec(CodecShape(4, 4, wishes.message_width), seed)
    return Session("id", "ann", wishes, codec, build_optimizer(codec.parameters(), wishes.optimizer), Replies(100))


def train(found: Session, steps: int) -> None:
    for _ in range(steps):
        generator = torch.Generator().manual_seed(found.step)
        for parameter in found.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        found.optimizer.param_groups[0]["lr"] = 0.01
        found.optimizer.step()
        found.optimizer.zero_grad()
        found.step += 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_imported_session_continues_bit_for_bit(optimizer: str) -> None:
    unbroken, other = session(optimizer), session(optimizer, seed=9)
    train(unbroken, 3)
    unbroken.gathered = [torch.randn_like(unbroken.parameters()[0]), *[None] * (len(unbroken.parameters()) - 1)]
    train(other, 1)
    blob = export_state(unbroken, HASH)
    import_state(other, blob, HASH)
    assert other.step == 3
    assert other.gathered[0] is not None
    assert unbroken.gathered[0] is not None
    assert torch.equal(other.gathered[0], unbroken.gathered[0])
    assert other.gathered[1:] == unbroken.gathered[1:]
    other.settings = dataclasses.replace(other.settings, seed=0)
    assert export_state(other, HASH) == blob
    for each in (unbroken, other):
        train(each, 4)
    assert all(torch.equal(a, b) for a, b in zip(unbroken.parameters(), other.parameters(), strict=True))
    assert export_state(other, HASH) == export_state(unbroken, HASH)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_session_without_a_step(optimizer: str) -> None:
    fresh, other = session(optimizer), session(optimizer)
    train(other, 2)
    import_state(other, export_state(fresh, HASH), HASH)
    assert export_state(other, HASH) == export_state(fresh, HASH)


def edited(blob: bytes, facts: dict[str, Any] | None = None, **tensors: torch.Tensor | None) -> bytes:
    size = int.from_bytes(blob[:8], "little")
    known = json.loads(json.loads(blob[8 : 8 + size])["__metadata__"]["teaching"])
    for name, value in (facts or {}).items():
        if value is None:
            del known[name]
        else:
            known[name] = value
    merged = {name: value for name, value in {**load(blob), **tensors}.items() if value is not None}
    return bytes(save(merged, {"teaching": json.dumps(known)}))


def edits() -> dict[str, tuple[Any, str]]:
    def settings(**changes: Any) -> dict[str, Any]:
        return {"settings": json.loads(json.dumps(dataclasses.asdict(session().settings))) | changes}

    big = torch.zeros(7)
    return {
        "empty": (lambda blob: b"", "0 bytes were received that are no exported session state"),
        "garbage": (lambda blob: b"\0garbage" * 9, "are no exported session state"),
        "truncated": (lambda blob: blob[:-1], "are no exported session state"),
        "another safetensors file": (lambda blob: bytes(save({"x": big})), "are no exported session state"),
        "facts that are no mapping": (lambda blob: bytes(save({"x": big}, {"teaching": "[]"})), "are no exported"),
        "another version": (lambda blob: edited(blob, {"version": 2}), "of version 2, this server reads version 1"),
        "another teacher": (lambda blob: edited(blob, {"model_hash": "b" * 64}), "weights b{12}, this one has a{12}"),
        "other settings": (lambda blob: edited(blob, settings(inject="add")), "inject 'add' .session has 'replace'"),
        "a missing codec tensor": (
            lambda blob: edited(blob, **{"codec.decoders.4.1.bias": None}), "'codec.decoders.4.1.bias'|'decoders.4.1.bias'"),
        "a codec tensor too many": (lambda blob: edited(blob, **{"codec.mood": big}), "'mood' has shape"),
        "another shape": (lambda blob: edited(blob, **{"codec.decoders.4.1.bias": big}), r"has shape \[7\] in"),
        "another dtype": (
            lambda blob: edited(blob, **{"codec.decoders.4.1.bias": torch.zeros(4).half()}), "has shape"),
        "facts missing": (lambda blob: edited(blob, {"model_hash": None}), "model_hash Field required"),
        "step missing": (lambda blob: edited(blob, {"step": None}), "step Field required"),
        "a fact too many": (lambda blob: edited(blob, {"mood": "good"}), "mood Extra inputs"),
        "a step below zero": (lambda blob: edited(blob, {"step": -1}), "step Input should be greater"),
        "moment of another shape": (lambda blob: edited(blob, **{"optimizer.0.exp_avg": big}), r"exp_avg of parameter 0 is torch.float32 \[7\]"),
        "moment of nobody": (lambda blob: edited(blob, **{"optimizer.x.exp_avg": big}), "tensor 'optimizer.x.exp_avg'"),
        "gathered of nobody": (lambda blob: edited(blob, {"gathered": True}, **{"gathered.99": big}), "no such parameter"),
        "gathered of another shape": (lambda blob: edited(blob, {"gathered": True}, **{"gathered.0": big}), "grad of parameter 0"),
    }  # fmt: skip


@pytest.mark.parametrize("name", edits())
def test_a_state_that_does_not_fit_changes_nothing(name: str) -> None:
    edit, sentence = edits()[name]
    source, target = session(), session()
    train(source, 3)
    train(target, 2)
    before = export_state(target, HASH)
    with pytest.raises(StateMismatch, match=sentence):
        import_state(target, edit(export_state(source, HASH)), HASH)
    assert export_state(target, HASH) == before
    train(target, 1)
