"""Who runs next, as a pure choice: values in, value out; no clock, no queue, no model."""

from __future__ import annotations

from collections.abc import Sequence

from teacher_server.jobs import Batch, Job

__all__ = ["next_batch"]


def next_batch(heads: Sequence[Job]) -> Batch:
    """Chooses among the first jobs of all lanes, given in order of arrival; at least one.

    What frees memory (Backward, Step, Export, Import) goes before a new Forward; otherwise first come,
    first served. A batch is one student's job.
    """
    return Batch((min(heads, key=lambda job: (not job.frees_memory, job.born)),))
