"""`DistillationTrainer` in processes of a launcher: the script each process runs, and how a test starts them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.world import free_port
from tests.integration.processes import ROOT

__all__ = ["METHOD", "launched", "spec", "trained"]

METHOD = {"names": "talking", "message_width": 16, "consistency": "cross", "message_dropout": 0, "answer_dropout": 0}
"""What several processes do as one does: no dropout, losses that are means over rows."""


def spec(student: Path, texts: Path, address: str, output: Path, **fields: Any) -> dict[str, Any]:
    """A run as `trained` takes it; `fields` are those of `loops.trainer_of`, and `resume`."""
    given = {"method": METHOD, "teacher": {"address": address, "compression": "none"}, "save_strategy": "steps", "save_steps": 4}
    return given | {"student": str(student), "texts": str(texts), "output": str(output)} | fields


def trained(given: Mapping[str, Any]) -> Any:
    """Trains as a spec says, and leaves the student in `end/` of the output folder; gives the trainer."""
    from tests.integration.loops import trainer_of

    fields = dict(given)
    student, texts, output = (Path(fields.pop(name)) for name in ("student", "texts", "output"))
    resume = fields.pop("resume", False)
    trainer = trainer_of(student, texts, fields.pop("teacher"), output, **fields)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(output / "end"))
    return trainer


def launched(
    given: Mapping[str, Any], count: int = 2, words: Sequence[str] = (), python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """The same in processes of torchrun.

    Args:
        given: the spec.
        count: of processes.
        words: for torchrun.
        python: the interpreter.
    """
    output = Path(given["output"])
    output.mkdir(parents=True, exist_ok=True)
    path = output / "spec.json"
    path.write_text(json.dumps(given))
    torchrun = [python, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", str(free_port())]
    return subprocess.run(
        [*torchrun, *words, "-m", "tests.integration.trainer_processes", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip


if __name__ == "__main__":
    trained(json.loads(Path(sys.argv[1]).read_text()))
