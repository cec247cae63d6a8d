"""Small data sets of every modality, and a plain training loop, for the students' tests."""

from __future__ import annotations

from typing import Any

import torch

from student_client.config import StudentConfig
from student_client.students import build_student
from student_models import Student
from task_data.splits import Split, Task, TaskData

__all__ = ["data_of", "image_data", "split_of", "text_data", "texts", "tiny", "train"]

WORDS = ("good", "bad", "film", "plot", "the", "a", "dull", "great")


def split_of(columns: dict[str, Any], labels: torch.Tensor, labelled: torch.Tensor | None = None) -> Split:
    mask = torch.ones(len(labels), dtype=torch.bool) if labelled is None else labelled
    return Split(columns, next(iter(columns.values())), labels, mask)


def texts(rows: int, seed: int) -> list[str]:
    pick = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (rows,), generator=pick).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (n,), generator=pick).tolist()) for n in lengths]


def text_data() -> TaskData:
    splits = []
    for seed, rows in enumerate((40, 12, 12)):
        lines = texts(rows, seed)
        splits.append(split_of({"text": lines}, torch.tensor([line.count("good") > 0 for line in lines]).long()))
    return TaskData(Task("mood", ("negative", "positive")), "text", *splits)


def ratings_data() -> TaskData:
    splits = []
    for seed, rows in enumerate((60, 20, 20)):
        pick = torch.Generator().manual_seed(seed)
        user, item = (10 * torch.randint(1, 8, (rows,), generator=pick) for _ in range(2))
        splits.append(split_of({"user": user, "item": item}, 1.0 + (user + item).float() / 50))
    return TaskData(Task("rating"), "ratings", *splits)


def image_data(side: int = 8, channels: int = 1) -> TaskData:
    splits = []
    for seed, rows in enumerate((24, 8, 8)):
        pick = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (rows, channels, side, side), dtype=torch.uint8, generator=pick)
        splits.append(split_of({"image": image}, torch.arange(rows) % 3))
    return TaskData(Task("shape", ("a", "b", "c")), "image", *splits)


def data_of(modality: str) -> TaskData:
    return {"text": text_data, "ratings": ratings_data, "image": image_data}[modality]()


def tiny(modality: str, **overrides: Any) -> tuple[Student, TaskData]:
    data = data_of(modality)
    return build_student(StudentConfig(**({"size": "tiny"} | overrides)), data), data


def train(student: Student, data: TaskData, steps: int) -> float:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    view, labels = student.view(data.train.columns), data.train.labels
    loss = torch.zeros(())
    for _ in range(steps):
        outputs = student(view)
        loss = (
            torch.nn.functional.mse_loss(outputs, labels)
            if outputs.dim() == 1
            else torch.nn.functional.cross_entropy(outputs, labels)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
