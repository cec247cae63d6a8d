"""What a program imports from `student_client`: each name is there, and none costs anything before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import student_client


@pytest.mark.parametrize("name", student_client.__all__)
def test_a_public_name_is_what_its_home_calls_public(name: str) -> None:
    found = getattr(student_client, name)
    assert found.__name__ == name
    assert name in import_module(found.__module__).__all__


def test_public_names_are_sorted_and_others_are_none() -> None:
    assert sorted(student_client.__all__) == student_client.__all__
    with pytest.raises(AttributeError, match="no attribute 'Student'"):
        student_client.Student  # noqa: B018


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    script = (
        "import sys, student_client; print([name for name in ('torch', 'transformers', 'grpc') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
