"""What some files say, read again when they change; knows neither what it is nor who asks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from teaching_protocol.errors import ConfigError

__all__ = ["Watched", "stamp"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Watched(Generic[T]):
    """The content of files that an operator may replace while the server runs.

    Files that are gone, half written or do not belong together change nothing: what they said before holds on, and the log says so once.

    Args:
        what: they are, for the log.
        paths: of the files.
        read: gives their content.

    Attributes:
        content: what they said when they were last good.

    Raises:
        ConfigError: `read` cannot use them at the start.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._what, self._paths, self._read = what, tuple(paths), read
        self._lock = threading.Lock()
        self._stamps = self._look()
        self.content = read()

    def changed(self) -> bool:
        """Takes the files in anew if they have changed; whether there is a new content since the last time."""
        if self._look() == self._stamps:
            return False
        with self._lock:
            stamps = self._look()  # before the files are read: what is written meanwhile counts as another change
            if stamps == self._stamps:
                return False
            try:
                self.content = self._read()
            except ConfigError as error:
                _log.error("%s changed and cannot be used; what was there before holds on: %s", self._what, error)
                return False
            finally:
                self._stamps = stamps  # not before: who asks meanwhile waits for the new content
        _log.info("%s changed, and is used from now on", self._what)
        return True

    def _look(self) -> tuple[tuple[int, ...], ...]:
        return tuple(stamp(path) for path in self._paths)


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does; empty if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ino, found.st_size
