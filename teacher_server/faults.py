"""Whose an exception is, and any exception as one of the error tree; knows nobody who raises."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from teaching_protocol.errors import InternalError, OutOfMemory, TeachingError

__all__ = ["noted", "typed"]

_log = logging.getLogger(__name__)

Key = TypeVar("Key")


@contextmanager
def noted(outcomes: MutableMapping[Key, Any], key: Key) -> Iterator[None]:
    """What is raised inside is the outcome of this one, and nobody else's.

    A device without room is no one's fault: that goes on up.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        outcomes[key] = error


def typed(error: Exception, method: str) -> TeachingError:
    """The error itself if it is of the tree; otherwise it is logged whole and an id stands for it."""
    if isinstance(error, TeachingError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory(
            "the teacher's device has no room for this call; send fewer rows or tokens, or try again later"
        )
    mark = uuid.uuid4().hex[:12]
    _log.error("internal error %s in %s", mark, method, exc_info=error)
    return InternalError(f"internal error {mark}; the server's log has the details under this id")
