"""A student's own work in a step, timed: a real student with its codec, without a teacher; knows no server."""

from __future__ import annotations

import itertools
import statistics
import time

import torch

from scale.costs import Local
from student_client.codecs import CodecShape, StudentCodec
from student_client.students.presets import PRESETS
from student_models import States, StudentCard, TextStudent
from student_models.tokenizer import train_tokenizer

WIDTH = 384


def student_work(size: str, rows: int, tokens: int, rounds: int) -> tuple[Local, float]:
    """A text student's own work with its codec, in the trainer's order; and its spread."""
    torch.set_num_threads(1)
    student, codec, ids = _student(size, rows, tokens)
    parameters = [*student.parameters(), *codec.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    labels, took = torch.zeros(rows, dtype=torch.long), []
    for _ in range(rounds + 2):
        marks = [time.perf_counter()]
        lower = student.lower(ids)
        message = codec.encode(lower.hidden)
        marks.append(time.perf_counter())
        answer, below = message.detach().requires_grad_(), lower.hidden.detach().requires_grad_()
        upper = student.upper(States(below, lower.mask))
        loss = torch.nn.functional.cross_entropy(student.head(upper), labels)
        (loss + (codec.decode(answer) - upper.hidden).square().mean()).backward()
        marks.append(time.perf_counter())
        torch.autograd.backward([message, lower.hidden], [answer.grad, below.grad])
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        took.append([late - early for early, late in itertools.pairwise(marks)])
    sums = [sum(each) for each in took[2:]]
    local = Local(*(statistics.median(column) for column in zip(*took[2:], strict=True)))
    return local, statistics.pstdev(sums) / statistics.mean(sums)


def _student(size: str, rows: int, tokens: int) -> tuple[TextStudent, StudentCodec, dict[str, torch.Tensor]]:
    sizes = PRESETS["text"][size]
    words = [f"word{number} word{number}" for number in range(1000)]
    tokenizer = train_tokenizer(words, sizes["vocabulary_size"], sizes["max_tokens"])
    card = StudentCard(modality="text", task="sentiment", labels=("no", "yes"), sizes=sizes, dropout=0.1)
    shape = CodecShape(sizes["width"], WIDTH)
    ids = torch.randint(5, 400, (rows, tokens))
    return (
        TextStudent(card, tokenizer),
        StudentCodec(shape, 0),
        {"input_ids": ids, "attention_mask": torch.ones(rows, tokens, dtype=torch.bool)},
    )
