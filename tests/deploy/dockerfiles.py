"""Reads a Dockerfile as far as ours go: stages of instructions, JSON or words, with the values of its arguments."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

__all__ = ["ROOT", "Instruction", "is_sent_to_the_builder", "read_stages"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instruction:
    """One instruction and all that stands behind it."""

    name: str
    rest: str

    @property
    def exec_form(self) -> list[str] | None:
        """Its words, where they are a JSON list."""
        return json.loads(self.rest) if self.rest.startswith("[") else None

    @property
    def words(self) -> list[str]:
        return self.rest.split()


def read_stages(path: Path, **arguments: str) -> list[list[Instruction]]:
    """A list for each FROM; arguments that are given, or have a default, are put in their places."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    stages: list[list[Instruction]] = [[]]
    known = dict(arguments)
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, rest = line.strip().split(None, 1)
        if name == "ARG" and "=" in rest:
            known.setdefault(rest.partition("=")[0], rest.partition("=")[2].strip('"'))
        for key, value in known.items():
            rest = rest.replace(f"${{{key}}}", value)
        if name == "FROM":
            stages.append([])
        stages[-1].append(Instruction(name, re.sub(r"\s+", " ", rest)))
    return stages[1:]


def is_sent_to_the_builder(path: str) -> bool:
    """What .dockerignore says of a path in the repository; the last line that fits holds."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            bare = pattern.removeprefix("!").removeprefix("**/")
            parts = Path(path).parts
            prefixes = ["/".join(parts[: end + 1]) for end in range(len(parts))]
            if any(fnmatch(each, bare) for each in [*prefixes, parts[-1]]):
                sent = pattern.startswith("!")
    return sent
