"""Trained students served by real processes: what they say over gRPC is what they say here and alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from student_client import InProcessTeacher, RemoteTeacher
from teacher_server.local import local_teacher
from teaching_protocol.errors import InvalidTensor
from tests.integration.processes import ROOT, Address, ServerProcess
from tests.integration.test_remote_equals_local import assert_same, conversation
from tests.unit.teacher_server.served_students import MODALITIES, alone, columns_of, run_folder, wire_inputs

WIDTH = 12
PORTS = ["answer", "answer_state", "teacher_message.enter", "teacher_message.exit", "state_consistency"]
KNOWN = ["hidden.2", "hidden.3.mean1", "hidden.3.mean2", "pooled", "logits"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {modality: run_folder(root / modality, modality) for modality in MODALITIES}


@pytest.fixture(scope="module")
def addresses(runs: dict[str, Path]) -> Iterator[dict[str, Address]]:
    process = ServerProcess({name: {"model": str(folder), "metrics_port": -1} for name, folder in runs.items()})
    yield process.addresses
    assert process.close() == 0


@pytest.mark.parametrize("answer_from", ["message", "message_and_input"])
@pytest.mark.parametrize("inject", ["replace", "add"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_served_student_is_the_student_in_this_process(
    modality: str, inject: str, answer_from: str, runs: dict[str, Path], addresses: dict[str, Address]
) -> None:
    columns = columns_of(modality)
    inputs = {name: value[:4] for name, value in wire_inputs(columns).items()}
    inputs |= {"message": torch.randn(4, 1, WIDTH), "message_gate": torch.tensor([1.0, 0.0, 0.5, 1.0])}
    options: dict[str, Any] = {
        "message_width": WIDTH,
        "message_tokens": 1,
        "inject": inject,
        "answer_from": answer_from,
    }
    outputs = [*PORTS, *KNOWN, *(["attention_mask"] if modality == "text" else [])]
    remote = RemoteTeacher(addresses[modality].name, student="same", compression="none", **options)
    found = conversation(remote, inputs, outputs)
    here = conversation(InProcessTeacher(local_teacher(runs[modality]), student="same", **options), inputs, outputs)
    assert_same(found, here)
    assert found["gradient of message"].abs().sum() > 0
    assert found["gradient of message_gate"].abs().sum() > 0
    student = alone(runs[modality])
    with torch.no_grad():
        outputs_alone = student(student.view(columns))[:4]
    torch.testing.assert_close(found["logits"].squeeze(-1), outputs_alone, atol=1e-5, rtol=1e-5)


def test_after_a_bad_image_the_same_server_goes_on(addresses: dict[str, Address]) -> None:
    with RemoteTeacher(addresses["image"].name, student="a", message_width=WIDTH) as teacher:
        with pytest.raises(InvalidTensor, match=r"`image` is \[1, 1, 28, 28\] uint8, expected \[batch, 1, 8, 8\]"):
            teacher.observe({"image": torch.zeros(1, 1, 28, 28, dtype=torch.uint8)}, ["logits"])
        assert teacher.observe({"image": torch.zeros(1, 1, 8, 8, dtype=torch.uint8)}, ["logits"])["logits"].shape == (
            1,
            3,
        )


@pytest.fixture
def command(runs: dict[str, Path]) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(modality: str) -> tuple[subprocess.Popen[str], str]:
        words = [sys.executable, "-m", "teacher_server", "serve", "--model", str(runs[modality])]
        words += ["--port", "0", "--metrics-port", "-1", "--threads", "1"]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().split()[1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_command_serves_a_run_folder(
    command: Callable[[str], tuple[subprocess.Popen[str], str]], runs: dict[str, Path]
) -> None:
    process, address = command("ratings")
    student = alone(runs["ratings"])
    with RemoteTeacher(address, student="a", compression="none", message_width=WIDTH, message_tokens=1) as teacher:
        assert (teacher.card.family, teacher.card.model_name) == ("ratings_student", "ratings")
        assert teacher.card.model_hash == local_teacher(runs["ratings"]).card.model_hash
        raw = {"user": torch.tensor([10, 999, 20]), "item": torch.tensor([20, 30, -1])}  # 999 and -1 are unknown
        message = torch.randn(3, 1, WIDTH, requires_grad=True)
        before = teacher(message)
        before.square().sum().backward()
        teacher.step(lr=0.1)
        assert not torch.equal(teacher(message), before)
        found = teacher.observe(wire_inputs(dict(raw)), ["logits"])["logits"]
    assert message.grad is not None
    assert message.grad.abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(found[:, 0], student(student.view(raw)), atol=1e-6, rtol=1e-6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0
