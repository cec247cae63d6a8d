from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from student_client.compare.records import SELECTED, Planned, read_record, write_plan, write_results
from student_client.compare.runner import known_runs, plan_of
from student_client.compare.suites import Suite, Variant
from student_client.reporting.result import Result
from tests.unit.student_client.compare.suite_setup import ended, suite

RUN = Planned("digits", "talking", "final", 1, 2, 1)
PLAN = {"config": {"training": {"lr": 0.1, "steps": 8}, "names": ("a", "b")}, "teachers": {}}
RESULT = Result(
    method="talking", metric="accuracy", validation=0.5, test=0.4, test_loss=1.0, test_macro_f1=0.3, best_step=4,
    parameters=10, codec_parameters=5, steps=8, epochs=1, wall_s=2.0, teacher_s=1.0, teacher_rows=64,
    teacher_rows_saved=6, bytes_sent=100, bytes_received=50, device="cpu", seed=1,
)  # fmt: skip


def test_a_finished_run_is_known_again_with_all_its_numbers(tmp_path: Path) -> None:
    write_plan(tmp_path, PLAN)
    assert read_record(tmp_path, RUN, {}, PLAN) is None, "it has not ended"
    RESULT.write(tmp_path)
    record = read_record(tmp_path, RUN, {"training.lr": 0.1}, PLAN)
    assert record is not None
    assert (record.task, record.variant, record.stage, record.trial, record.seed) == (
        "digits",
        "talking",
        "final",
        2,
        1,
    )
    assert record.settings == {"training.lr": 0.1}
    assert record.error is None
    for name in (
        "validation",
        "test",
        "steps",
        "wall_s",
        "teacher_s",
        "teacher_rows",
        "teacher_rows_saved",
        "bytes_sent",
    ):
        assert getattr(record, name) == getattr(RESULT, name)


@pytest.mark.parametrize(
    ("changed", "is_known"),
    [
        ({"config": {"training": {"lr": 0.2, "steps": 8}, "names": ["a", "b"]}, "teachers": {}}, False),
        ({"config": {"training": {"lr": 0.1, "steps": 8}, "names": ["b", "a"]}, "teachers": {}}, False),
        ({"config": {"training": {"lr": 0.1, "steps": 8, "new": 1}, "names": ["a", "b"]}, "teachers": {}}, True),
        ({"config": {"training": {"lr": 0.1}, "names": ["a", "b"]}, "teachers": {"foundation": "x"}}, True),
    ],
)
def test_a_run_that_did_something_else_is_not_known(tmp_path: Path, changed: dict[str, object], is_known: bool) -> None:
    write_plan(tmp_path, changed)
    RESULT.write(tmp_path)
    assert (read_record(tmp_path, RUN, {}, PLAN) is not None) is is_known


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"method": "talking"}'])
def test_a_result_that_is_cut_short_counts_as_none(tmp_path: Path, damage: str) -> None:
    write_plan(tmp_path, PLAN)
    (tmp_path / "result.json").write_text(damage)
    assert read_record(tmp_path, RUN, {}, PLAN) is None


def test_a_selector_is_done_when_its_training_says_so(tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, stage="select", number=0)
    write_plan(tmp_path, PLAN)
    (tmp_path / "selector.json").write_text("{}")  # it is saved after every episode
    assert read_record(tmp_path, run, {}, PLAN) is None
    (tmp_path / SELECTED).write_text('{"steps": 30, "wall_s": 1.5}')
    record = read_record(tmp_path, run, {}, PLAN)
    assert record is not None
    assert (record.steps, record.wall_s, record.test) == (30, 1.5, None)


def test_results_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")
    write_results(path, {"suite": "made_up"}, [ended(RUN, 0.5, 0.4), ended(RUN, 0.6, 0.3)])
    found = json.loads(path.read_text())
    assert found["suite"] == "made_up"
    assert [run["validation"] for run in found["runs"]] == [0.5, 0.6]
    assert list(tmp_path.iterdir()) == [path]


class TestResumption:
    """Which runs of an earlier session are known again: played on disk with results that are made up."""

    def play(self, root: Path, made: Suite, count: int) -> list[Planned]:
        """Ends the next runs as a session would that is interrupted after `count` of them."""
        done: list[Planned] = []
        board = known_runs(made, (), seeds=2, tuned=True, root=root)[0]
        while len(done) < count and (run := board.next()) is not None:
            write_plan(root / run.folder, plan_of(board, run, root))
            validation = 0.5 + (run.number == 1) / 10
            result = dataclasses.replace(RESULT, validation=validation, seed=run.seed)
            result.write(root / run.folder)
            board.add(run, ended(run, validation, 0.5))
            done.append(run)
        return done

    def test_only_what_is_missing_is_left(self, tmp_path: Path) -> None:
        made = suite().narrowed(tasks=["digits"])
        first = self.play(tmp_path, made, 11)  # 9 trials, and 2 final runs of seed 0
        board = known_runs(made, (), seeds=2, tuned=True, root=tmp_path)[0]
        assert [run for run, _ in board.ended()] == first
        left = self.play(tmp_path, made, 99)
        assert not {run.key for run in left} & {run.key for run in first}
        assert {run.trial for run in left} == {1}, "the trial that validation chose before the interruption"
        assert known_runs(made, (), seeds=2, tuned=True, root=tmp_path)[0].missing == []

    def test_more_seeds_keep_the_first_ones(self, tmp_path: Path) -> None:
        made = suite().narrowed(tasks=["digits"])
        self.play(tmp_path, made, 99)
        board = known_runs(made, (), seeds=3, tuned=True, root=tmp_path)[0]
        assert {(run.stage, run.seed) for run in board.missing} == {("final", 2)}

    def test_a_changed_variant_alone_is_run_again(self, tmp_path: Path) -> None:
        made = suite().narrowed(tasks=["digits"])
        self.play(tmp_path, made, 99)
        changed = Variant(methods=("one_way",), role="baseline", settings={"method.w_interact": 0.3})
        other = made.model_copy(update={"variants": {**made.variants, "one_way": changed}})
        board = known_runs(other, (), seeds=2, tuned=True, root=tmp_path)[0]
        assert {run.variant for run in board.missing} == {"one_way"}

    def test_another_teacher_is_another_run(self, tmp_path: Path) -> None:
        made = suite().narrowed(tasks=["digits"])
        self.play(tmp_path, made, 99)
        values = made.model_dump()
        values["tasks"]["digits"]["foundation"]["student"]["training.max_steps"] = 6
        board = known_runs(Suite.model_validate(values), (), seeds=2, tuned=True, root=tmp_path)[0]
        assert {run.variant for run in board.missing} == set(made.variants) - {"task_only"}


def test_a_result_of_before_has_no_moves(tmp_path: Path) -> None:
    """Planned moves were counted among the recoveries then; they stay there."""
    known = {**dataclasses.asdict(RESULT), "recoveries": 3}
    del known["moves"]
    (tmp_path / "result.json").write_text(json.dumps(known))
    found = Result.read(tmp_path)
    assert (found.recoveries, found.moves) == (3, 0)
