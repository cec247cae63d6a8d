"""A teacher in another process gives what the same teacher gives in this one: outputs and gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from student_client import InProcessTeacher, RemoteTeacher
from student_client.teachers.remote import Teacher
from teacher_server.local import local_teacher
from tests.integration.processes import Address
from tests.unit.teacher_server.tiny_models import MODEL_TYPES, TEXT_TYPES, tiny_inputs

WIDTH = 12
GRIDS = ("efficientnet", "resnet")
CAUSAL = ("llama", "qwen2", "mistral", "gpt2")
LANGUAGE = ["last_hidden_state", "logprobs.top3", "logprobs.top3.t200", "tokens.top3"]
PORTS = ["answer", "answer_state", "teacher_message.enter", "teacher_message.exit", "state_consistency"]


@pytest.fixture(scope="module")
def locals_(model_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    return functools.cache(lambda model_type: local_teacher(str(model_folder(model_type))))


Facts = dict[str, torch.Tensor]


def conversation(teacher: Teacher, inputs: dict[str, torch.Tensor], outputs: list[str]) -> Facts:
    """Outputs, message gradients and gathered codec gradients of one Forward and Backward under fixed weights."""
    leaves = {name: value.clone() for name, value in inputs.items()}
    wanted = [name for name, value in leaves.items() if name.startswith("message") and value.is_floating_point()]
    for name in wanted:
        leaves[name].requires_grad_()
    with teacher:
        found = teacher.forward_ports(leaves, outputs)
        generator = torch.Generator().manual_seed(3)
        losses = [
            (value * torch.randn(value.shape, generator=generator)).sum()
            for value in found.values()
            if value.requires_grad
        ]
        torch.stack(losses).sum().backward()
        state = load(teacher.export_state())
    facts = {name: value.detach() for name, value in found.items()}
    facts |= {f"gradient of {name}": leaves[name].grad for name in wanted if leaves[name].grad is not None}
    return facts | {name: value for name, value in state.items() if name.startswith("gathered.")}


def message_inputs(model_type: str, tokens: int, with_gate: bool = True) -> dict[str, torch.Tensor]:
    inputs = {"message": torch.randn(3, tokens, WIDTH), **tiny_inputs(model_type, 3, tokens)}
    if model_type not in GRIDS:
        mask = torch.ones(3, tokens, dtype=torch.bool)
        mask[1:, tokens // 2 + 1 :] = False
        inputs["message_mask"] = mask
    if with_gate:
        inputs["message_gate"] = torch.tensor([1.0, 0.0, 0.5])
    return inputs


def assert_same(remote: Facts, local: Facts, tolerance: float = 1e-5) -> None:
    assert remote.keys() == local.keys()
    assert any(name.startswith("gathered.") for name in local)
    for name in local:
        torch.testing.assert_close(
            remote[name], local[name], atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def compare(
    server: Address, local: Any, inputs: dict[str, torch.Tensor], outputs: list[str], **options: Any
) -> tuple[Facts, Facts]:
    remote = conversation(
        RemoteTeacher(server.name, student="same", compression="none", message_width=WIDTH, **options), inputs, outputs
    )
    here = conversation(InProcessTeacher(local, student="same", message_width=WIDTH, **options), inputs, outputs)
    assert_same(remote, here)
    return remote, here


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family(model_type: str, servers: dict[str, Address], locals_: Callable[[str], Any]) -> None:
    tokens = 16 if model_type in GRIDS else 6
    inputs = message_inputs(model_type, tokens)
    outputs = [*PORTS, "hidden.2", "pooled"]
    outputs += ["attention_mask"] if model_type in TEXT_TYPES else []
    outputs += ["logits", "logits.top2"] if model_type != "t5" else []
    outputs += LANGUAGE if model_type in CAUSAL else []
    remote, _ = compare(servers[model_type], locals_(model_type), inputs, outputs)
    assert remote["gradient of message"].abs().sum() > 0
    assert remote["gradient of message_gate"].abs().sum() > 0


@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2", "t5", "mpnet", "vit", "resnet"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_message_tokens(
    model_type: str, tokens: int, servers: dict[str, Address], locals_: Callable[[str], Any]
) -> None:
    inputs = message_inputs(model_type, tokens) | tiny_inputs(model_type, 3, 7)
    outputs = [*PORTS, "cross_consistency"]
    inputs["message_exit"] = torch.randn(3, tokens, WIDTH)
    options = {"message_tokens": tokens, "answer_from": "message_and_input"}
    remote, _ = compare(servers[model_type], locals_(model_type), inputs, outputs, **options)
    assert remote["answer"].shape == (3, tokens, WIDTH)
    assert remote["gradient of message_exit"].abs().sum() > 0


@pytest.mark.parametrize("inject", ["replace", "add", "prefix"])
@pytest.mark.parametrize("answer_from", ["message", "message_and_input"])
@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_ways_into_bert(
    inject: str, answer_from: str, tokens: int, servers: dict[str, Address], locals_: Callable[[str], Any]
) -> None:
    own_tokens = 4 if inject == "add" and tokens else 6
    inputs = message_inputs("bert", tokens or 6) | tiny_inputs("bert", 3, own_tokens)
    options = {"inject": inject, "answer_from": answer_from, "message_tokens": tokens}
    compare(servers["bert"], locals_("bert"), inputs, PORTS, **options)


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
@pytest.mark.parametrize("answer_from", ["message", "message_and_input"])
def test_poolings(pooling: str, answer_from: str, servers: dict[str, Address], locals_: Callable[[str], Any]) -> None:
    inputs = message_inputs("bert", 2) | tiny_inputs("bert", 3, 7)
    options = {"pooling": pooling, "message_tokens": 2, "answer_from": answer_from, "codec_depth": 1}
    compare(servers["bert"], locals_("bert"), inputs, [*PORTS, "cross_consistency"], **options)


@pytest.mark.parametrize(("compression", "tolerance"), [("bf16", 2**-7), ("fp16", 2**-9)])
def test_half_precision_on_the_wire_is_within_its_rounding(
    compression: str, tolerance: float, servers: dict[str, Address], locals_: Callable[[str], Any]
) -> None:
    inputs = message_inputs("bert", 6, with_gate=False)
    remote = RemoteTeacher(servers["bert"].name, student="half", compression=compression, message_width=WIDTH)
    local = InProcessTeacher(locals_("bert"), student="half", message_width=WIDTH)
    with remote, local, torch.no_grad():
        given, exact = remote.forward_ports(inputs, PORTS), local.forward_ports(inputs, PORTS)
        logits = [each.observe(tiny_inputs("bert", 3, 6), ["logits"])["logits"] for each in (remote, local)]
    assert not torch.equal(given["answer"], exact["answer"])
    scale = {name: value.abs().max() for name, value in exact.items()}
    for name in PORTS:  # the message is rounded on its way in, the output on its way out, and LayerNorms amplify
        assert (given[name] - exact[name]).abs().max() <= 8 * tolerance * scale[name].clamp_min(1)
    torch.testing.assert_close(logits[0], logits[1], rtol=tolerance, atol=1e-6)  # rounded once, out
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[compression]
    assert torch.equal(logits[0], logits[1].to(dtype).float())


def test_text_and_image_ports(servers: dict[str, Address], locals_: Callable[[str], Any]) -> None:
    from tests.unit.teacher_server.tiny_models import text_bytes

    text = {"text": text_bytes("good film", "bad", "über film good bad")}
    image = {"image": torch.randint(0, 255, (3, 3, 20, 20), dtype=torch.uint8)}
    for model_type, own in (("bert", text), ("vit", image)):
        inputs = {"message": torch.randn(3, 2, WIDTH), **own}
        options = {"message_tokens": 2, "answer_from": "message_and_input"}
        compare(servers[model_type], locals_(model_type), inputs, [*PORTS, "logits"], **options)
