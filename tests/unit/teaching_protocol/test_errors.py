from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest

from teaching_protocol import errors
from teaching_protocol.channel import ERROR_KEY, error_from, error_metadata
from teaching_protocol.errors import ERRORS, CallerError, InternalError, Overloaded, ServiceError, TeachingError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ERRORS)
def test_every_class_has_a_status_and_is_in_a_branch(name: str) -> None:
    error = ERRORS[name]
    assert isinstance(grpc.StatusCode[error.status], grpc.StatusCode)
    assert error.__doc__
    assert issubclass(error, CallerError | ServiceError) or error is TeachingError
    assert name in errors.__all__


@pytest.mark.parametrize("name", ERRORS)
def test_every_class_survives_the_metadata(name: str) -> None:
    sent = ERRORS[name]("what was received, what was expected")
    found = error_from(error_metadata(sent), str(sent))
    assert type(found) is type(sent)
    assert str(found) == str(sent)
    assert found is not None
    assert found.retry_after_s == pytest.approx(sent.retry_after_s)


def test_the_retry_delay_travels() -> None:
    found = error_from(error_metadata(Overloaded("later", 1.25)), "later")
    assert found is not None
    assert found.retry_after_s == 1.25


def test_no_metadata_and_an_unknown_class() -> None:
    assert error_from((), "text") is None
    assert error_from((("x-other", "1"),), "text") is None
    assert type(error_from(((ERROR_KEY, "FromTheFuture"),), "text")) is InternalError


def test_the_docstrings_tree_names_every_class_in_its_branch() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted([*drawn, "TeachingError"]) == sorted(ERRORS)
    service = drawn.index("ServiceError")
    assert all(issubclass(ERRORS[name], CallerError) for name in drawn[:service])
    assert all(issubclass(ERRORS[name], ServiceError) for name in drawn[service:])


def test_the_document_names_every_class() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    missing = [name for name in ERRORS if f"`{name}`" not in text]
    assert not missing


def test_every_test_the_document_names_exists() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)", text)
    assert named
    for path, function in named:
        assert f"def {function}(" in (ROOT / path).read_text(), f"{path}::{function}"
