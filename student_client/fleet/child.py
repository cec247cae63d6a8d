"""The process of one student of a fleet: trains it, and says by its exit code whether to start it again; knows no other.

It ends by itself, with a checkpoint, when its standard input is closed: it does not outlive its fleet.
"""

from __future__ import annotations

import sys
from pathlib import Path

from student_client.config import load_run_config
from student_client.processes import end_with_input
from student_client.reporting.progress import Progress
from student_client.training.runs import open_run
from teaching_protocol.errors import (
    CallerError,
    Quarantined,
    SessionNotFound,
    StaleEpoch,
    StudentNameTaken,
    TeachingError,
)
from teaching_protocol.memory import keep_freed_memory

__all__ = ["AGAIN", "NEVER", "main"]

AGAIN, NEVER = 75, 78
"""Exit codes, those of sysexits.h: what failed may go well another time (EX_TEMPFAIL), or would fail again (EX_CONFIG)."""

_LONGEST_END_S = 60.0
_PASSING = (Quarantined, SessionNotFound, StaleEpoch, StudentNameTaken)


def main() -> None:
    """Trains the run of the configuration in argv[1]; `--resume` after it goes on from the newest checkpoint."""
    keep_freed_memory()
    end_with_input(_LONGEST_END_S)
    sys.exit(_train(Path(sys.argv[1]), "--resume" in sys.argv[2:]))


def _train(path: Path, resume: bool) -> int:
    """0 when the run is at its end, 128 and the signal's number when it was told to end before."""
    try:
        config = load_run_config(path, {})
        with open_run(config, resume=resume, overwrite=not resume, progress=Progress(config.output.name)) as trainer:
            return 128 + trainer.interrupts.signal if trainer.run() is None else 0
    except TeachingError as error:
        said = "; ".join([str(error), *getattr(error, "__notes__", [])])
        sys.stderr.write(f"{type(error).__name__}: {' '.join(said.split())}\n")
        return NEVER if isinstance(error, CallerError) and not isinstance(error, _PASSING) else AGAIN


if __name__ == "__main__":
    main()
