"""Who runs next, as a pure choice: values in, value out; no clock, no queue, no model."""

from __future__ import annotations

from collections.abc import Sequence

from teacher_server.jobs import Batch, Job

__all__ = ["next_batch"]


def next_batch(heads: Sequence[Job], batch_tokens: int = 16384) -> Batch:
    """Chooses among the first jobs of all lanes, given in order of arrival; at least one.

    What frees memory (Backward, Step, Export, Import) goes before a new Forward; otherwise first come,
    first served. Others of the same bucket join, up to a padded area of `batch_tokens`.
    """
    first = min(heads, key=lambda job: (not job.frees_memory, job.born))
    chosen = [first]
    for job in heads if first.bucket is not None else []:
        if job is not first and job.bucket == first.bucket and _area([*chosen, job]) <= batch_tokens:
            chosen.append(job)
    return Batch(tuple(chosen))


def _area(jobs: Sequence[Job]) -> int:
    """Rows of all times the tokens of the longest."""
    return sum(job.rows for job in jobs) * max(job.tokens // max(1, job.rows) for job in jobs)
