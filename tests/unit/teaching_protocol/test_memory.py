"""malloc takes the settings, as often as they are given, unless the user has settings of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from teaching_protocol.memory import OFF_SWITCH, arenas, keep_freed_memory

ROOT = Path(__file__).parents[3]
GLIBC = platform.libc_ver()[0] == "glibc"
# 48 MB written twice by a thread that is not the first: how many pages faulted the second time
FAULTS = """
import resource, sys, threading
from teaching_protocol.memory import keep_freed_memory
taken = keep_freed_memory()
faults = []
def fill():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        b"1" * (48 * 2**20)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=fill)
thread.start()
thread.join()
print(taken, faults[1])
"""


# what a command has when it runs: malloc_info lists its arenas
ARENAS = """
import ctypes, importlib, sys
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
sys.argv = ["command", "--help"]
try:
    importlib.import_module("{module}").main()
except SystemExit:
    pass
out = ctypes.c_void_p(libc.fopen(b"{path}", b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
"""


def second_faults(**environment: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    clean |= {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run([sys.executable, "-c", FAULTS], env=clean, check=True, capture_output=True, text=True)
    taken, faults = done.stdout.split()
    return taken == "True", int(faults)


def test_glibc_takes_the_settings() -> None:
    assert [keep_freed_memory(), keep_freed_memory()] == [GLIBC, GLIBC]


@pytest.mark.skipif(not GLIBC, reason="the settings are glibc's")
def test_a_freed_block_is_not_faulted_again() -> None:
    taken, faults = second_faults()
    assert taken
    assert faults < 100  # of 12,288 pages


@pytest.mark.skipif(not GLIBC, reason="the settings are glibc's")
@pytest.mark.parametrize("side", ["teacher_server", "student_client"])
def test_a_command_has_few_arenas_whatever_it_imports(side: str, tmp_path: Path) -> None:
    path = tmp_path / "arenas.xml"
    script = ARENAS.format(module=f"{side}.__main__", path=path)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    environment = clean | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, timeout=120)
    assert 1 <= path.read_text().count("<heap nr=") <= arenas()


@pytest.mark.skipif(not GLIBC, reason="the settings are glibc's")
@pytest.mark.parametrize(
    "setting", [{OFF_SWITCH: "0"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}]
)
def test_the_user_may_say_otherwise(setting: dict[str, str]) -> None:
    taken, faults = second_faults(**setting)
    assert not taken
    assert faults > 10_000 or "MALLOC_TRIM_THRESHOLD_" not in setting  # others may be kept by chance
