from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from task_data import Split, batches, count_batches, teacher_view, token_lengths
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


def lengthy(lengths: list[int], labelled: list[bool]) -> tuple[Split, dict[str, torch.Tensor]]:
    """A split of texts of so many words, and the view of a student for whom a word is a token."""
    count = torch.tensor(lengths)
    mask = torch.arange(max(lengths)) < count[:, None]
    texts = [" ".join("x" * length) for length in lengths]
    known = torch.tensor(labelled)
    data = Split({"text": texts}, texts, torch.where(known, torch.arange(len(texts)), -1), known)
    return data, {"input_ids": mask * 7, "attention_mask": mask}


rows_of = st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=400)


@given(rows_of, st.integers(1, 9), st.sampled_from([None, 0.0, 0.3, 1.0]), st.integers(0, 5), st.integers(0, 5))
def test_batches_of_similar_length_are_the_same_rows_in_another_order(
    rows: list[tuple[int, bool]], size: int, share: float | None, seed: int, epoch: int
) -> None:
    """Each row as often as without, batches of the same sizes and shares; any start goes on where it would have been."""
    data, inputs = lengthy([length for length, _ in rows], [known for _, known in rows])
    lengths = token_lengths(inputs)
    plain = list(batches(inputs, {}, data, size, seed, epoch, 0, share))
    grouped = list(batches(inputs, {}, data, size, seed, epoch, 0, share, lengths))
    assert len(grouped) == len(plain) == count_batches(data, size, share)
    sizes = [sorted((len(batch), int(batch.labelled.sum())) for batch in each) for each in (plain, grouped)]
    mixed = share is None or not any(known for _, known in rows) or all(known for _, known in rows)
    assert ([size for size, _ in sizes[0]] == [size for size, _ in sizes[1]]) if mixed else (sizes[0] == sizes[1])
    drawn = [sorted(itertools.chain(*(batch.rows.tolist() for batch in each))) for each in (plain, grouped)]
    assert drawn[0] == drawn[1]
    start = len(grouped) // 2
    late = list(batches(inputs, {}, data, size, seed, epoch, start, share, lengths))
    assert [batch.rows.tolist() for batch in late] == [batch.rows.tolist() for batch in grouped[start:]]
    for batch in grouped:
        assert batch.inputs["input_ids"].shape[1] == max((rows[row][0] for row in batch.rows.tolist()), default=1)


@pytest.mark.parametrize("share", [None, 0.5])
def test_less_is_padding_and_the_order_is_random(share: float | None) -> None:
    skewed = [1 + int(60 * (place / 1000) ** 3) for place in range(1000)]
    data, inputs = lengthy(skewed, [place % 4 == 0 for place in range(1000)])
    lengths = token_lengths(inputs)
    assert lengths is not None
    assert lengths.tolist() == skewed

    def padded(*by: torch.Tensor) -> int:
        return sum(each.inputs["input_ids"].numel() for each in batches(inputs, {}, data, 8, 0, 0, 0, share, *by))

    assert padded() > 2 * padded(lengths)
    longest = [each.inputs["input_ids"].shape[1] for each in batches(inputs, {}, data, 8, 0, 0, 0, share, lengths)]
    assert longest != sorted(longest)
    order = [
        [b.rows.tolist() for b in batches(inputs, {}, data, 8, 0, epoch, 0, share, lengths)] for epoch in (0, 0, 1)
    ]
    assert order[0] == order[1] != order[2]


def test_images_and_ratings_have_no_length() -> None:
    assert token_lengths({"image": torch.zeros(3, 1, 4, 4)}) is None
    assert token_lengths({"user": torch.zeros(3, 1)}) is None


def test_lengths_of_another_split_are_refused() -> None:
    with pytest.raises(DataError, match="lengths: 2 for a split of 23 rows"):
        batches(view(), {}, split(), 4, 0, 0, lengths=torch.ones(2))
