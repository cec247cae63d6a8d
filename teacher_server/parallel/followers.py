"""The other processes of a split teacher: started, told what to run, watched, ended; knows no model.

Each has one end of a socket pair. Lines go to it; nothing comes back. Whoever ends closes its end, however it ends, and the other
side learns of it at once: a teacher of which one process is gone has no whole weights any more, so all end.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NoReturn, Protocol

import torch

from command_config.exits import ExitCode
from teacher_server.parallel.group import finished, join, leave
from teacher_server.parallel.passes import Begin, Drop, Pass, send, written
from teaching_protocol.errors import Draining

__all__ = ["Child", "Followers", "Launch", "launch"]

_log = logging.getLogger(__name__)

_LOOK_S = 0.5
_END_S = 10.0
_CULPRIT_S = 2.0


class Child(Protocol):
    """A process that was started, as `subprocess` has it."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code once it has ended; negative for a signal's number. Raises subprocess.TimeoutExpired."""
        ...

    def kill(self) -> None:
        """Ends it with signal 9."""
        ...


Launch = Callable[[socket.socket], Child]


def launch(control: socket.socket) -> Child:
    """Starts one as a child process that has this end of its socket pair."""
    command = [sys.executable, "-m", "teacher_server.parallel.follower", str(control.fileno())]
    # in a session of its own: a terminal's signals are not for it, from the first moment on
    return subprocess.Popen(command, pass_fds=[control.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)


class Followers:
    """All of them. What they run is run by this process at the same time, in one order: see `running`.

    Args:
        begin: what they are told first; the rank is set for each.
        limit_s: seconds that one pass may take.
        launcher: starts one.
    """

    def __init__(self, begin: Begin, limit_s: float, launcher: Launch = launch) -> None:
        self._begin, self._limit_s, self._launch = begin, limit_s, launcher
        self._processes: list[Child] = []
        self._controls: list[socket.socket] = []
        self._lock = threading.Lock()
        self._pass: tuple[float, Callable[[], bool]] = (0.0, lambda: True)  # when it began, and whether it is over
        self._dropped: deque[int] = deque()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="followers", daemon=True)
        self._folder = tempfile.TemporaryDirectory(prefix="teacher-", ignore_cleanup_errors=True)

    def start(self) -> None:
        """Starts them and meets them; they load the model while this process does."""
        begin = replace(self._begin, meeting=os.path.join(self._folder.name, "meeting"))  # noqa: PTH118
        for rank in range(1, begin.ranks):
            ours, theirs = socket.socketpair()
            with theirs:
                self._processes.append(self._launch(theirs))
            self._controls.append(ours)
            ours.sendall(written(replace(begin, rank=rank)))
        self._watcher.start()
        join(0, begin.ranks, begin.meeting)

    @contextmanager
    def running(self, wanted: Pass, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Has them run a pass that this process runs inside; one at a time.

        An error inside leaves them in the midst of a collective, which nothing but the end gets them out of.
        """
        with self._lock:
            if self._closing.is_set():
                raise Draining("the server shut down before this call ran")
            began = time.monotonic()
            self._pass = (began, lambda: False)
            try:
                self._tell_dropped()
                self._tell(written(wanted, tensors))
                send(tensors)
                yield
            except Exception as error:
                _log.error("a pass failed", exc_info=error)
                time.sleep(
                    _CULPRIT_S
                )  # if it failed because another process ended, the watcher says so, and ends this one
                self._end(f"a pass over the split model failed ({type(error).__name__})")
            finally:
                self._pass = (began, finished())

    def drop(self, key: int) -> None:
        """Has them let go of a graph, soon; may be called from anywhere, also while memory is collected."""
        self._dropped.append(key)

    def close(self) -> None:
        """Ends them and waits for it."""
        with self._lock:
            self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for each in self._controls:
            each.close()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            process.kill()
            process.wait()
        leave()
        self._folder.cleanup()

    def _tell(self, line: bytes) -> None:
        for each in self._controls:
            each.sendall(line)

    def _tell_dropped(self) -> None:
        keys = [self._dropped.popleft() for _ in range(len(self._dropped))]
        if keys:
            self._tell(written(Drop(tuple(keys))))

    def _watch(self) -> None:
        with selectors.DefaultSelector() as ends:
            for rank, each in enumerate(self._controls, 1):
                ends.register(each, selectors.EVENT_READ, rank)
            while not self._closing.is_set():
                gone: Sequence[int] = [key.data for key, _ in ends.select(_LOOK_S)]
                began, is_over = self._pass
                if self._closing.is_set():
                    return
                if gone:
                    self._end(f"process {gone[0]} of {len(self._processes) + 1} has ended{self._how(gone[0])}")
                if time.monotonic() - began > self._limit_s and not is_over():
                    self._end(
                        f"a pass took more than {self._limit_s:g} s, tensor_parallel_limit_s: a process stands still"
                    )
                if self._dropped and self._lock.acquire(blocking=False):
                    try:
                        with suppress(OSError):  # one has ended: that is seen next
                            self._tell_dropped()
                    finally:
                        self._lock.release()

    def _how(self, rank: int) -> str:
        try:
            code = self._processes[rank - 1].wait(1.0)
        except subprocess.TimeoutExpired:
            return ""
        return f" by signal {-code}" if code < 0 else f" with code {code}"

    def _end(self, why: str) -> NoReturn:
        """Ends this process, as a kill would: threads may wait in a collective for one that will never come."""
        _log.critical("%s: the split teacher is not whole any more, and ends; start it again", why)
        for each in self._processes:
            each.kill()
        self._folder.cleanup()
        logging.shutdown()
        os._exit(ExitCode.FAILED)
