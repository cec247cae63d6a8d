from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from task_data import Split, batches, teacher_view
from teaching_protocol.errors import DataError, InvalidSetting

N = 23


def split(texts: list[str] | None = None) -> Split:
    texts = texts or [f"text {'x' * row}" for row in range(N)]
    return Split({"text": texts}, texts, torch.arange(len(texts)), torch.arange(len(texts)) % 2 == 0)


def view() -> dict[str, torch.Tensor]:
    mask = (torch.arange(30) < torch.arange(1, N + 1)[:, None]).long()
    return {"input_ids": mask * 7, "attention_mask": mask, "user": torch.arange(N)}


def orders(seed: int, epoch: int, start: int = 0) -> list[list[int]]:
    data = split()
    return [batch.rows.tolist() for batch in batches(view(), teacher_view(data), data, 4, seed, epoch, start)]


def test_an_epoch_has_every_row_once_with_its_own_inputs() -> None:
    data = split()
    got = list(batches(view(), teacher_view(data), data, 4, seed=0, epoch=0))
    assert [len(batch) for batch in got] == [4, 4, 4, 4, 4, 3]
    assert sorted(itertools.chain(*(batch.rows.tolist() for batch in got))) == list(range(N))
    for batch in got:
        assert torch.equal(batch.inputs["user"], batch.rows)
        assert torch.equal(batch.labels, data.labels[batch.rows])
        assert torch.equal(batch.labelled, data.labelled[batch.rows])
        said = [bytes(row.tolist()).rstrip(b"\0").decode() for row in batch.teacher["text"]]
        assert said == [data.teacher[row] for row in batch.rows.tolist()]


def test_the_order_is_seed_and_epoch_and_a_resumed_run_goes_on() -> None:
    torch.manual_seed(1)
    first = orders(3, 5)
    torch.manual_seed(2)
    assert orders(3, 5) == first
    assert orders(3, 6) != first
    assert orders(4, 5) != first
    assert all(orders(3, 5, start) == first[start:] for start in range(8))


def test_padding_is_trimmed_to_the_longest_row_of_the_batch() -> None:
    data = split()
    for batch in batches(view(), teacher_view(data), data, 4, seed=0, epoch=0):
        longest = int(batch.rows.max())
        assert batch.inputs["input_ids"].shape == batch.inputs["attention_mask"].shape == (len(batch), longest + 1)
        assert batch.teacher["text"].shape[1] == len("text ") + longest
        assert batch.inputs["user"].shape == (len(batch),)


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_teacher_text_is_padded_utf8(texts: list[str]) -> None:
    got = teacher_view(split([text.rstrip("\0") or "x" for text in texts]))["text"]
    assert got.dtype == torch.uint8
    for text, row in zip(texts, got, strict=True):
        assert bytes(row.tolist()).rstrip(b"\0").decode() == (text.rstrip("\0") or "x")


@pytest.mark.parametrize("text", ["é" * 3000, "x" + "é" * 3000, "xy" + "\U0001f600" * 900])
def test_long_teacher_text_is_cut_on_the_border_of_a_character(text: str) -> None:
    got = teacher_view(split([text, "short"]))["text"]
    assert 2044 < got.shape[1] <= 2048
    assert text.startswith(bytes(got[0].tolist()).rstrip(b"\0").decode())


def test_teacher_sees_the_pixels_of_an_image() -> None:
    images = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    data = Split({"image": images}, images, torch.arange(3), torch.ones(3, dtype=torch.bool))
    assert teacher_view(data)["image"] is images
    for batch in batches({"image": images}, teacher_view(data), data, 2, seed=0, epoch=0):
        assert torch.equal(batch.inputs["image"], images[batch.rows])
        assert torch.equal(batch.teacher["image"], images[batch.rows])


@pytest.mark.parametrize(
    ("size", "seed", "epoch", "start"), [(0, 0, 0, 0), (1, -1, 0, 0), (1, 0, -1, 0), (1, 0, 0, -1)]
)
def test_settings_out_of_range_are_refused_before_the_first_batch(size: int, seed: int, epoch: int, start: int) -> None:
    with pytest.raises(InvalidSetting, match="batch_size must be 1 or more"):
        batches(view(), {}, split(), size, seed, epoch, start)


def test_a_view_of_another_split_is_refused() -> None:
    with pytest.raises(DataError, match="input_ids: 23 rows for a split of 2"):
        batches(view(), {}, split(["a", "b"]), 2, seed=0, epoch=0)
