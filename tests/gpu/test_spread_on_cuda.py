"""A teacher of which a part is on the GPU and the rest in the machine's memory: the same as on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from teacher_server.local import local_teacher
from teacher_server.models.loading import load_teacher
from teacher_server.models.spreading import Spread, is_offloaded
from tests.calls import Caller
from tests.unit.teacher_server.test_spreading import conversation, halves


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5"])
def test_half_on_the_gpu_half_offloaded(model_type: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = model_folder(model_type)
    plain = load_teacher(folder, device="cpu")
    layout = {name: 0 if place == "cpu" else "cpu" for name, place in halves(plain).items()}
    path = tmp_path / "map.json"
    path.write_text(json.dumps(layout))
    teacher = load_teacher(folder, spread=Spread(str(path)))
    assert is_offloaded(teacher.model)
    assert teacher.device == torch.device("cuda:0")
    found, wanted = conversation(teacher), conversation(plain)
    for name, value in wanted.items():
        assert found[name].device == (torch.device("cpu") if name == "grad" else teacher.device)
        torch.testing.assert_close(found[name].cpu(), value, atol=1e-4, rtol=1e-4, msg=name)
    assert teacher.model_hash == plain.model_hash


@pytest.mark.gpu
def test_its_sessions_lie_on_the_gpu(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"": 0, "encoder.layer.3": "cpu", "bert.encoder.layer.3": "cpu"}))
    actor = local_teacher(load_teacher(model_folder("bert"), spread=Spread(str(path))))
    with Caller(actor, "student") as caller:
        forward, _ = caller.forward()
        assert caller.backward(forward).grads["message"].device.type == "cpu"
        assert caller.step(1).grad_norm > 0
        assert next(iter(actor.sessions.live()[0].codec.parameters())).is_cuda
