"""malloc takes the settings, as often as they are given."""

from __future__ import annotations

import platform

from teaching_protocol.memory import keep_freed_memory


def test_glibc_takes_the_settings() -> None:
    is_glibc = platform.libc_ver()[0] == "glibc"
    assert [keep_freed_memory(), keep_freed_memory()] == [is_glibc, is_glibc]
