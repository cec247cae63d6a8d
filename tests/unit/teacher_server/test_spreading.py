"""Weights on several devices, or on the disk until they are used: the same numbers as on one device, laid out as planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from teacher_server.cli import app
from teacher_server.config import ServerConfig
from teacher_server.local import local_teacher
from teacher_server.models.loading import empty_teacher, load_teacher
from teacher_server.models.split import FrozenTeacher, LayerSpan
from teacher_server.models.spreading import Spread, is_offloaded
from teacher_server.plan.layout import lay_out
from teaching_protocol.errors import ModelLoadError
from tests.calls import Caller

Models = Callable[[str], Path]

FAMILIES = ("bert", "distilbert", "gpt2", "llama", "t5", "vit")


def spread(folder: Path, tmp_path: Path, layout: dict[str, str]) -> FrozenTeacher:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(layout))
    return load_teacher(folder, device="auto", spread=Spread(str(path), offload_folder=tmp_path / "offload"))


def halves(teacher: FrozenTeacher) -> dict[str, str]:
    """The first half of the blocks in memory, the rest on the disk."""
    names = {id(module): name for name, module in teacher.model.named_modules()}
    blocks = [names[id(block)] for block in teacher.family.blocks]  # type: ignore[attr-defined]
    half = len(blocks) // 2
    return {"": "cpu"} | dict.fromkeys(blocks[:half], "cpu") | dict.fromkeys(blocks[half:], "disk")


def conversation(teacher: FrozenTeacher) -> dict[str, torch.Tensor]:
    """A span forward and backward, and what the teacher knows of an input of its own."""
    width = teacher.family.widths[1]
    states = torch.linspace(-1, 1, 2 * 4 * width).reshape(2, 4, width).requires_grad_()
    mask = None if teacher.family.modality == "image" else torch.tensor([[True] * 4, [True, True, False, False]])
    output = teacher.upper(states, mask, LayerSpan(1, teacher.family.layers))
    (grad,) = torch.autograd.grad(output, states, torch.linspace(1, 2, output.numel()).view_as(output))
    known = teacher.states(teacher.prepare(teacher.example()), [0, teacher.family.layers], with_pooled=True)
    return {"output": output.detach(), "grad": grad, **known}


@pytest.mark.parametrize("where", ["disk", "halves"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_offloaded_weights_give_the_same_numbers(
    model_type: str, where: str, model_folder: Models, tmp_path: Path
) -> None:
    folder = model_folder(model_type)
    plain = load_teacher(folder, device="cpu")
    layout = {"": "disk"} if where == "disk" else halves(plain)
    teacher = spread(folder, tmp_path, layout)
    assert is_offloaded(teacher.model)
    assert teacher.device == torch.device("cpu")
    wanted = conversation(plain)
    for _ in range(2):  # weights that came and went come again
        found = conversation(teacher)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6, msg=name)
    assert teacher.model_hash == plain.model_hash
    assert is_offloaded(teacher.model), "the weights are gone again"


def test_a_graph_holds_no_weights(model_folder: Models, tmp_path: Path) -> None:
    teacher = spread(model_folder("bert"), tmp_path, {"": "disk"})
    saved: list[torch.Tensor] = []
    states = torch.ones(2, 3, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each) or each, lambda each: each):
        output = teacher.upper(states, None, LayerSpan(1, 4))
    assert [tuple(each.shape) for each in saved] == [(2, 3, 32)] * 3, "the inputs of three blocks and nothing else"
    output.sum().backward()
    assert states.grad is not None


def test_a_student_steps_with_an_offloaded_teacher_as_with_any(model_folder: Models, tmp_path: Path) -> None:
    folder = model_folder("bert")
    found = []
    for teacher in (load_teacher(folder, device="cpu"), spread(folder, tmp_path, {"": "disk"})):
        actor = local_teacher(teacher, max_tokens=32)
        with Caller(actor, "student", answer_from="message_and_input") as caller:
            text = torch.tensor([[5, 6, 7], [8, 9, 10]])
            for step in (1, 2):
                inputs: dict[str, Any] = {"message": torch.linspace(-1, 1, 48).reshape(2, 3, 8), "input_ids": text}
                forward, reply = caller.forward(inputs=inputs)
                grads = caller.backward(forward).grads
                norm = caller.step(step).grad_norm
            found.append((reply.outputs["answer"], grads["message"], torch.tensor(norm)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_what_cannot_be_spread_is_refused(model_folder: Models, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="device_map: received 'nowhere', expected auto, balanced"):
        Spread("nowhere").map()
    for wrong in ("0", "cpu=much"):
        with pytest.raises(ModelLoadError, match="expected DEVICE=SIZE"):
            Spread("auto", (wrong,)).limits()
    with pytest.raises(ModelLoadError, match="lies on one device"):
        load_teacher(model_folder("resnet"), spread=Spread("auto"))
    for fields in ({"device_memory": ("cpu=1GiB",)}, {"device_map": "auto", "device": "cpu"}):
        with pytest.raises(ValidationError):
            ServerConfig.model_validate({"model": "m", **fields})
    with pytest.raises(ValidationError, match="weights that move are not compiled"):
        ServerConfig.model_validate({"model": "m", "device_map": "auto", "compile": True})


@pytest.mark.parametrize("name", ["auto", "sequential"])
def test_a_planned_layout_is_the_one_that_loading_makes(name: str, model_folder: Models, tmp_path: Path) -> None:
    """Half of the weights fit into memory; what lies there is what was planned, to the byte."""
    folder = model_folder("llama")
    whole = sum(each.nbytes for each in load_teacher(folder).model.parameters())
    wanted = Spread(name, (f"cpu={int(0.7 * whole)}",), tmp_path / "offload")
    layout = lay_out(empty_teacher(folder), wanted)
    assert {share.device for share in layout.shares} == {"cpu", "disk"}
    assert layout.offloads
    teacher = load_teacher(folder, spread=wanted)
    assert is_offloaded(teacher.model)
    here = sum(each.nbytes for each in chain(teacher.model.parameters(), teacher.model.buffers()) if not each.is_meta)
    planned = {share.device: share.size_bytes for share in layout.shares}
    assert planned["cpu"] == here
    assert {str(device) for device in teacher.model.hf_device_map.values()} == set(planned)  # type: ignore[union-attr]


def test_two_gpus_are_planned_without_one(model_folder: Models, tmp_path: Path) -> None:
    teacher = empty_teacher(model_folder("llama"))
    whole = sum(each.numel() * each.element_size() for each in teacher.model.parameters())
    layers = 4
    path = tmp_path / "map.json"
    names = {f"model.layers.{layer}": "0" if layer < layers // 2 else "1" for layer in range(layers)}
    path.write_text(json.dumps({"": "0"} | names))
    layout = lay_out(teacher, Spread(str(path)))
    assert [share.device for share in layout.shares] == ["0", "1"]
    assert layout.main == "0"
    assert not layout.offloads
    assert sum(share.size_bytes for share in layout.shares) >= whole
    path.write_text(json.dumps(names))
    with pytest.raises(ModelLoadError, match=r"leaves model\.embed_tokens without a device"):
        lay_out(teacher, Spread(str(path)))
    path.write_text(json.dumps({"": 0, "model.layer.9": 1}))
    with pytest.raises(ModelLoadError, match=r"the model has no 'model\.layer\.9'; its parts are model, lm_head"):
        lay_out(teacher, Spread(str(path)))


def test_the_plan_prints_the_layout(model_folder: Models) -> None:
    words = ["plan", "--model", str(model_folder("llama")), "--rows", "4", "--tokens", "8", "--device-map", "auto"]
    words += ["--device-memory", "cpu=100KB"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "where the weights would lie" in shown.output
    assert "disk" in shown.output
    plain = json.loads(CliRunner().invoke(app, [*words[:-4], "--json"]).output)
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert "layout" not in plain
    assert [each["device"] for each in found["layout"]["devices"]] == ["cpu", "disk"]
    assert found["bytes"]["graph"] < plain["bytes"]["graph"], "blocks that run again keep their inputs alone"
    assert found["bytes"]["weights"] < plain["bytes"]["weights"]
