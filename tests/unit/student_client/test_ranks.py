"""What the ranks of a student tell each other: real processes; and who has which rows, and what is refused."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_client.ranks import Ranks, joined
from student_client.training.division import check_divisible, part_of
from student_client.training.runs import open_run
from task_data import Batch
from teaching_protocol.errors import ConfigError, RankLost, TeacherUnavailable, TeachingError
from tests.chaos.rank_world import rank_environment
from tests.chaos.world import _forks, free_port
from tests.unit.student_client.run_setup import quiet, run_config

Outcome = tuple[str, Any]
WAIT_S = 1.5


def _rank(job: Callable[[Ranks], Any], environment: dict[str, str], told: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= environment
    with joined(WAIT_S, 1.0) as ranks:
        try:
            told.put((ranks.rank, ("gave", job(ranks))))
        except TeachingError as error:
            told.put((ranks.rank, (type(error).__name__, str(error))))


def by_ranks(job: Callable[[Ranks], Any], count: int = 2) -> list[Outcome]:
    """What a job gives at each rank, or the error it ends with."""
    port, told = free_port(), _forks.Queue()
    made = [
        _forks.Process(target=_rank, args=(job, rank_environment(rank, count, port), told), daemon=True)
        for rank in range(count)
    ]
    for each in made:
        each.start()
    found = dict(told.get(timeout=60) for _ in made)
    for each in made:
        each.join(20)
    return [found[rank] for rank in range(count)]


def talk(ranks: Ranks) -> list[Any]:
    long = "x" * 5000
    return [
        ranks.gather(ranks.rank * 10),
        ranks.gather(long if ranks.rank else "short") == ["short", long],
        ranks.first(lambda: {"from": ranks.rank}),
        ranks.only_first(lambda: b"kept", b""),
        ranks.means({"both": float(ranks.rank), **({"mine": 3.0} if ranks.rank else {})}),
    ]


def test_what_one_says_all_hear() -> None:
    first, second = (value for _, value in by_ranks(talk))
    common = [[0, 10], True, {"from": 0}]
    assert first == [*common, b"kept", {"both": 0.5, "mine": 3.0}]
    assert second == [*common, b"", {"both": 0.5, "mine": 3.0}]


def average(ranks: Ranks) -> list[Any]:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.tensor([1.0, 2.0]) * (ranks.rank + 1)
    if ranks.rank == 1:
        parameters[1].grad = torch.ones(2)
    ranks.average(parameters, (0.25, 0.75)[ranks.rank])
    same = torch.nn.Linear(2, 1)
    ranks.align([same])
    return [
        [None if each.grad is None else each.grad.tolist() for each in parameters],
        ranks.gather(same.weight.detach().tolist()),
    ]


def test_gradients_are_weighed_and_weights_are_made_equal() -> None:
    for _, (grads, weights) in by_ranks(average):
        assert grads == [[1.75, 3.5], [0.75, 0.75], None]
        assert weights[0] == weights[1]


def without_rows(ranks: Ranks) -> Any:
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([float("nan") if ranks.rank else 2.0])
    ranks.average([parameter], (1.0, 0.0)[ranks.rank])
    return parameter.grad.tolist()


def test_a_rank_without_rows_adds_nothing_not_even_what_is_no_number() -> None:
    assert by_ranks(without_rows) == [("gave", [2.0])] * 2


def fail_apart(ranks: Ranks) -> None:
    """Rank 1 fails while rank 0 is about to share something else; then all may go on together."""
    try:
        with ranks.together():
            if ranks.rank:
                raise TeacherUnavailable("gone")
            ranks.first(lambda: 1)
            raise AssertionError("rank 0 has heard nothing")
    except TeacherUnavailable:
        assert ranks.gather(1) == [1, 1]
    with ranks.together():
        if ranks.rank:
            raise TeacherUnavailable("gone")
        raise ConfigError("wrong")


def test_what_fails_for_one_fails_for_all_and_the_gravest_speaks() -> None:
    assert by_ranks(fail_apart) == [("ConfigError", "wrong"), ("ConfigError", "rank 0 of 2: wrong")]


def err(ranks: Ranks) -> Any:
    try:
        with ranks.together():
            if ranks.rank:
                raise KeyError("a bug")
    except KeyError:
        return "its own"


def test_a_bug_of_one_is_told_to_the_others() -> None:
    assert by_ranks(err) == [("RankLost", "rank 1 of 2: KeyError: 'a bug'"), ("gave", "its own")]


def stand_still(ranks: Ranks) -> Any:
    if ranks.rank:
        time.sleep(2 * WAIT_S)
        return None
    began = time.monotonic()
    with pytest.raises(RankLost) as said:
        ranks.hear()
    seconds = time.monotonic() - began
    with pytest.raises(RankLost):
        ranks.hear()  # at once: nobody is asked twice
    return seconds, str(said.value), time.monotonic() - began - seconds


def test_one_that_stands_still_is_lost_in_time() -> None:
    seconds, said, again_s = by_ranks(stand_still)[0][1]
    assert again_s < 0.5
    assert WAIT_S * 0.8 < seconds < WAIT_S * 2
    assert "rank 0 of 2 has lost another rank, or waited 1.5 s for it" in said


def die(ranks: Ranks) -> None:
    if ranks.rank:
        os._exit(9)
    ranks.hear()


def test_one_that_dies_is_lost_at_once() -> None:
    port, told = free_port(), _forks.Queue()
    made = [
        _forks.Process(target=_rank, args=(die, rank_environment(rank, 2, port), told), daemon=True)
        for rank in range(2)
    ]
    for each in made:
        each.start()
    rank, (kind, _) = told.get(timeout=60)
    assert (rank, kind) == (0, "RankLost")
    for each in made:
        each.join(20)


def test_alone_nothing_is_told() -> None:
    ranks = Ranks()
    assert (ranks.gather(1), ranks.first(lambda: 2), ranks.only_first(lambda: 3, 0)) == ([1], 2, 3)
    with pytest.raises(KeyError), ranks.together():
        raise KeyError("mine")


@given(rows=st.integers(1, 12), count=st.integers(1, 5))
def test_every_row_is_somebodys_and_none_is_twos(rows: int, count: int) -> None:
    numbers = torch.arange(rows)
    batch = Batch(numbers, {"x": numbers + 1}, {"t": numbers + 2}, numbers + 3, numbers % 2 == 0)
    parts = [part_of(batch, rank, count) for rank in range(count)]
    counted = [part.rows[: part.part[0]] if count > 1 else part.rows for part in parts]
    assert sorted(torch.cat(counted).tolist()) == numbers.tolist()
    assert sum(part.part[0] / part.part[1] for part in parts) == pytest.approx(1.0)
    for part in parts:
        assert len(part) >= 1
        assert torch.equal(part.inputs["x"], part.rows + 1)
        assert torch.equal(part.teacher["t"], part.rows + 2)
        assert torch.equal(part.labels, part.rows + 3)


@pytest.mark.parametrize(
    ("method", "fields", "said"),
    [
        ("rkd", {}, "method.names: received rkd with 2 ranks"),
        ("talking", {}, "method.consistency: received 'contrastive' with 2 ranks"),
        ("task_only", {"data__level": "token"}, "data.level: received .token. with 2 ranks"),
        ("talking", {"complementary": [{"address": "b:1"}]}, "complementary: received 1 teachers and 2 ranks"),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path: Path, method: str, fields: dict[str, Any], said: str) -> None:
    config = run_config(tmp_path, "run", method, **fields)
    check_divisible(config, 1, config.data.level)
    with pytest.raises(ConfigError, match=said):
        check_divisible(config, 2, config.data.level)


def test_what_can_be_divided_is_not_refused(tmp_path: Path) -> None:
    for fields in ({"method__consistency": "cross"}, {"method__w_message_consistency": 0.0}):
        check_divisible(run_config(tmp_path, "run", "talking", **fields), 8, "row")
    check_divisible(run_config(tmp_path, "run", "soft_labels"), 8, "row")


def test_ranks_that_do_not_find_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "none")):
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(
            ConfigError, match="received rank 0 of 2 from the environment, but the ranks do not find each other"
        ),
        open_run(run_config(tmp_path), progress=quiet()),
    ):
        pass
