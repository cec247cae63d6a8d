"""A user's own text for language modelling, packed into blocks; knows no tokenizer and draws no splits."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from task_data.assembly import assemble
from task_data.config import DataConfig
from task_data.division import Part, divide
from task_data.splits import Task, TaskData
from teaching_protocol.errors import DataError

__all__ = ["TEXT_ENDINGS", "load_blocks", "packed", "read_lines"]

TEXT_ENDINGS = (".txt", ".txt.gz")
"""Endings of plain text files."""


def load_blocks(sources: Iterable[tuple[Part, Path, Sequence[str]]], config: DataConfig) -> TaskData:
    """Makes a next-token task of texts, in order: each row is a block of at most `config.block_bytes` bytes.

    Blocks are of text and not of tokens, so that teacher and student read the same, whatever their tokenizers are.

    Raises:
        DataError: a source without text, or fewer blocks than asked.
    """
    blocks: list[str] = []
    parts: list[Part] = []
    for part, path, texts in sources:
        found = list(packed(texts, config.block_bytes))
        if not found:
            raise DataError(f"{path}: there is no text in it; give a file with text")
        blocks += found
        parts += [part] * len(found)
    labels = torch.zeros(len(blocks), dtype=torch.int64)
    division = divide(blocks, parts, config)
    return assemble(Task(config.name, level="next_token"), "text", {"text": blocks}, blocks, labels, division)


def packed(texts: Iterable[str], block_bytes: int) -> Iterator[str]:
    """Lines of texts joined, in order, to blocks of at most so many bytes of UTF-8.

    A line that is longer is cut between words; a word that is longer yet, between characters.
    """
    block: list[str] = []
    size = 0
    for line in (line for text in texts for line in text.splitlines()):
        for piece in _pieces(line.strip().replace("\0", ""), block_bytes):
            length = len(piece.encode()) + 1
            if block and size + length - 1 > block_bytes:
                yield "\n".join(block)
                block, size = [], 0
            block.append(piece)
            size += length
    if block:
        yield "\n".join(block)


def read_lines(path: Path) -> list[str]:
    """The lines of a plain text file.

    Raises:
        DataError: no such file, or one that is no UTF-8 text.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give `path` the place of the data")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            return list(lines)
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}; correct the file") from error


def _pieces(line: str, limit: int) -> Iterator[str]:
    """A line in pieces of at most `limit` bytes."""
    while len(line.encode()) > limit:
        head = line.encode()[: limit + 1].decode(errors="ignore")
        cut = head.rfind(" ")
        if cut <= 0:
            head = line.encode()[:limit].decode(errors="ignore")
            cut = len(head)
        yield line[:cut].rstrip()
        line = line[cut:].lstrip()
    if line:
        yield line
