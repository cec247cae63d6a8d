"""Students and teachers each read texts their own way: a message has as many tokens as it was given, whatever the tokenizers."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from student_client import InProcessTeacher
from student_client.config import StudentConfig
from student_client.students import build_student
from task_data import Split, Task, TaskData, teacher_view
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from tests.unit.teacher_server.tiny_models import VOCABULARY, tiny_model, tiny_tokenizer

TEXTS = ["a good film", "bad", "the plot is dull and the end is near"]
WIDTH, TOKENS = 16, 2


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer that knows letters and no words."""
    names = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    assert len(names) <= VOCABULARY
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def teachers() -> dict[str, FrozenTeacher]:
    """The same weights, which read words or letters."""
    read = {"words": tiny_tokenizer(), "letters": letters()}
    return {name: FrozenTeacher(tiny_model("bert"), name, tokenizer=tokenizer) for name, tokenizer in read.items()}


def split() -> Split:
    labels = torch.tensor([1, 0, 0])
    return Split({"text": TEXTS}, TEXTS, labels, torch.ones(3, dtype=torch.bool))


def ask(teacher: FrozenTeacher, message: torch.Tensor, answer_from: str) -> dict[str, torch.Tensor]:
    inputs = {"message": message} | (teacher_view(split()) if answer_from != "message" else {})
    outputs = ["answer"] + (["teacher_message.enter", "teacher_message.exit"] if len(inputs) > 1 else [])
    options = {"message_width": WIDTH, "message_tokens": TOKENS, "answer_from": answer_from, "seed": 0}
    with InProcessTeacher(local_teacher(teacher, device="cpu"), student="reader", **options) as asked:  # type: ignore[arg-type]
        found = asked.forward_ports(inputs, outputs)
        (found["answer"].square().sum()).backward()
        return {name: value.detach() for name, value in found.items()}


def test_both_read_the_same_texts_as_other_tokens(teachers: dict[str, FrozenTeacher]) -> None:
    views = {name: teacher.prepare(teacher_view(split()))["input_ids"] for name, teacher in teachers.items()}
    assert views["words"].shape[1] != views["letters"].shape[1]
    data = TaskData(Task("mood", ("bad", "good")), "text", split(), split(), split())
    student = build_student(StudentConfig(size="tiny"), data)  # with a tokenizer trained on these texts
    own = student.view({"text": TEXTS})["input_ids"]
    assert own.shape[1] not in (views["words"].shape[1], views["letters"].shape[1]) or not torch.equal(
        own, views["words"]
    )


def test_a_message_alone_is_answered_the_same_to_the_bit(teachers: dict[str, FrozenTeacher]) -> None:
    message = torch.randn(3, TOKENS, WIDTH)
    found, gradients = {}, {}
    for name, teacher in teachers.items():
        own = message.clone().requires_grad_()
        found[name] = ask(teacher, own, "message")["answer"]
        gradients[name] = own.grad
    assert torch.equal(found["words"], found["letters"])
    assert gradients["words"] is not None
    assert gradients["words"].abs().sum() > 0
    assert torch.equal(gradients["words"], gradients["letters"])


def test_with_the_text_beside_it_shapes_stay_and_numbers_differ(teachers: dict[str, FrozenTeacher]) -> None:
    message = torch.randn(3, TOKENS, WIDTH)
    found = {
        name: ask(teacher, message.clone().requires_grad_(), "message_and_input") for name, teacher in teachers.items()
    }
    for ports in found.values():
        assert {tuple(value.shape) for value in ports.values()} == {(3, TOKENS, WIDTH)}
    for port in found["words"]:
        assert not torch.allclose(found["words"][port], found["letters"][port]), port
