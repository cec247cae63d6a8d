from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from student_client.init.proposals import propose_columns, propose_rows, propose_session, said_of
from teaching_protocol.errors import IncompatibleTeacher
from teaching_protocol.verbs import DescribeReply, Limits


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"label": ["a", "b"], "text": ["x", "y"], "id": ["1", "2"]}, ("text", "label")),
        (
            {"id": ["1", "2", "3"], "body": ["a long mail", "one more", "last"], "folder": ["in", "in", "out"]},
            ("body", "folder"),
        ),
        ({"stars": ["1.5", "2.0"], "review": ["good film", "bad film"]}, ("review", "stars")),
    ],
)
def test_columns(columns: dict[str, list[str]], expected: tuple[str, str]) -> None:
    assert propose_columns(columns) == expected


@given(rows=st.integers(4, 10_000))
def test_rows_fit_into_the_file(rows: int) -> None:
    found = propose_rows(rows)
    labelled, unlabelled, validation = (found[f"data.{name}"] for name in ("labelled", "unlabelled", "validation"))
    assert labelled >= 1
    assert validation >= 1
    assert labelled + unlabelled + validation <= rows - rows // 5
    if rows >= 3000:
        assert (labelled, unlabelled, validation) == (
            300,
            min(1500, rows - rows // 5 - 800),
            min(500, round(0.15 * rows)),
        )


def card(**fields: object) -> DescribeReply:
    known = {"model_name": "m", "family": "bert", "layers": 6, "entry": 2, "exit": 6, "input_ports": ("text",)}
    return DescribeReply(**{**known, **fields})  # type: ignore[arg-type]


def test_a_session_within_the_teachers_limits() -> None:
    found = propose_session(card(limits=Limits(rows=8, message_width=64)), "text", 32, 128)
    assert found == {
        "teacher.entry": 2, "teacher.exit": 6, "training.batch_size": 8, "method.message_width": 64,
    }  # fmt: skip


def test_a_grid_gets_more_message_tokens() -> None:
    found = propose_session(card(family="efficientnet", input_ports=("image",)), "image", 32, 128)
    assert found["method.message_tokens"] == 16


def test_other_data_than_the_teacher_takes() -> None:
    with pytest.raises(IncompatibleTeacher, match=r"the data are image, but m takes text; choose other data"):
        propose_session(card(), "image", 32, 128)


def test_the_card_in_one_sentence() -> None:
    assert said_of(card(labels=("ham", "spam"))) == (
        "m (bert, 6 layers, knows ham, spam); messages enter at layer 2 and are answered at 6; up to 1024 rows a call"
    )
