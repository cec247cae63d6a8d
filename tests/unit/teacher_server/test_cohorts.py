from __future__ import annotations

import gc
import itertools
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_server.engine.cohorts import Cohort, GraphCache, Member, storage_place, weigh_graph
from teacher_server.metrics.metrics import Metrics


def cohort(size_bytes: int, **rows: int) -> Cohort:
    """A shared graph; `a1=2` is call 1 of session a with two rows."""
    members = {(name[0], name[1:]): Member({}, {"answer": torch.zeros(2)}, count) for name, count in rows.items()}
    return Cohort(members, sum(rows.values()), size_bytes)


def cache(budget_bytes: int = 1000, session_bytes: int = 1000) -> tuple[GraphCache, Metrics]:
    metrics = Metrics()
    return GraphCache(budget_bytes, session_bytes, metrics), metrics


def count(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(f"teacher_graph_cache_{name}") or 0.0


def taken(graphs: GraphCache, *keys: str) -> list[set[str]]:
    """The members of the graphs handed over for the Backwards of these calls."""
    found = graphs.take([(key[0], key[1:]) for key in keys])
    return [{"".join(key) for key in each.members} for each in found]


def test_a_graph_is_handed_over_once() -> None:
    graphs, metrics = cache()
    graphs.put(cohort(10, a1=2))
    assert graphs.size_bytes == 10
    assert taken(graphs, "a1") == [{"a1"}]
    assert taken(graphs, "a1") == []
    assert graphs.size_bytes == 0
    assert count(metrics, "hits_total") == 1


def test_the_servers_budget_lets_the_oldest_of_anybody_go() -> None:
    graphs, metrics = cache(100)
    for each in (cohort(40, a1=1, b1=1), cohort(40, b2=1), cohort(40, c1=1)):
        graphs.put(each)
    assert taken(graphs, "a1", "b1") == []
    assert graphs.size_bytes == count(metrics, "bytes") == 80
    assert count(metrics, "evictions_total") == 2


def test_a_shared_graph_counts_once_for_the_server_and_by_rows_for_its_sessions() -> None:
    graphs, _ = cache(100, 50)
    graphs.put(cohort(80, a1=1, b1=1))
    assert graphs.size_bytes == 80
    graphs.put(cohort(20, a2=1))  # 40 and 20 of a: its older call goes, and b's half still pays
    assert graphs.size_bytes == 100
    assert taken(graphs, "a1") == []
    assert taken(graphs, "b1", "a2") == [{"b1"}, {"a2"}]
    assert graphs.size_bytes == 0


def test_the_sessions_budget_lets_its_own_oldest_go() -> None:
    graphs, _ = cache(1000, 50)
    for each in (cohort(40, a1=1), cohort(40, b1=1), cohort(40, b2=1)):
        graphs.put(each)
    assert taken(graphs, "b1") == []
    assert taken(graphs, "a1", "b2") == [{"a1"}, {"b2"}]


def test_a_graph_over_the_budget_is_not_kept() -> None:
    graphs, _ = cache(10, 100)
    graphs.put(cohort(11, a1=1, b1=1))
    assert graphs.size_bytes == 0
    nothing, _ = cache(0, 0)
    nothing.put(cohort(1, a1=1))
    assert taken(nothing, "a1") == []


def test_a_graph_most_of_whose_rows_failed_is_not_kept() -> None:
    graphs, _ = cache()
    half = cohort(10, a1=1)
    graphs.put(Cohort(half.members, 3, 10))
    assert graphs.size_bytes == 0
    graphs.put(Cohort({}, 3, 10))
    assert graphs.size_bytes == 0


def test_drop_and_clear_free_the_tensors() -> None:
    graphs, metrics = cache()
    shared = cohort(1, a1=2, b1=2)
    for each in (shared, cohort(1, a2=1), cohort(1, b2=1)):
        graphs.put(each)
    held = {key: weakref.ref(each.members[key].outputs["answer"]) for key, each in graphs._kept.items()}
    del each, shared
    graphs.drop("a")
    gc.collect()
    assert [key for key, ref in held.items() if ref() is not None] == [("b", "1"), ("b", "2")]
    assert graphs.size_bytes == 2
    graphs.clear()
    gc.collect()
    assert all(ref() is None for ref in held.values())
    assert graphs.size_bytes == 0
    assert count(metrics, "evictions_total") == 2


rows = st.dictionaries(st.sampled_from([f"{s}{n}" for s in "abcd" for n in range(3)]), st.integers(1, 4), min_size=1)
actions = st.one_of(
    st.tuples(st.just("put"), rows, st.integers(0, 60)),
    st.tuples(st.just("take"), rows, st.just(0)),
    st.tuples(st.just("drop"), rows, st.just(0)),
    st.tuples(st.just("clear"), rows, st.just(0)),
)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 150), st.integers(0, 150), st.lists(actions, max_size=12))
def test_the_accounts_hold_whatever_happens(
    budget: int, session_budget: int, events: list[tuple[str, dict[str, int], int]]
) -> None:
    graphs, metrics = cache(budget, session_budget)
    fresh = itertools.count()
    known: list[str] = []
    for action, names, size_bytes in events:
        if action == "put":
            made = {f"{name}-{next(fresh)}": each for name, each in names.items()}
            known += made
            graphs.put(cohort(size_bytes, **made))
        elif action == "take":
            asked = [name for name in known if name[:2] in names]
            found = taken(graphs, *asked)
            assert all(each <= set(asked) for each in found)
            assert taken(graphs, *asked) == [], "nobody has a second backward"
        elif action == "drop":
            graphs.drop(next(iter(names))[0])
        else:
            graphs.clear()
        kept = {id(each): each for each in graphs._kept.values()}.values()
        assert graphs.size_bytes == sum(each.size_bytes for each in kept) == count(metrics, "bytes") <= budget
        for session in "abcd":
            held = sum(each.share_bytes(key) for key, each in graphs._kept.items() if key[0] == session)
            assert held <= session_budget
        assert all(each.pays_for(each.members) for each in kept)
        assert {key for each in kept for key in each.members} == graphs._kept.keys()


@pytest.mark.parametrize("layers", [1, 3])
def test_a_graphs_weight_is_what_autograd_saves(layers: int) -> None:
    weights = [torch.randn(8, 8, requires_grad=True) for _ in range(layers)]
    x = torch.randn(4, 8, requires_grad=True)
    with weigh_graph({storage_place(weight) for weight in weights}) as weight:
        y = x
        for each in weights:
            y = (y @ each).tanh()
    # tanh saves its result, the product its two factors: x once, each result once, weights not counted
    assert weight.size_bytes == (1 + layers) * 4 * 8 * 4
    y.sum().backward()
    assert x.grad is not None


def test_weighing_keeps_no_graph_alive() -> None:
    x = torch.randn(4, requires_grad=True)
    with weigh_graph([]):
        y = x.exp()
    ref = weakref.ref(y)
    gc.disable()
    try:
        del y
        assert ref() is None, "a cycle holds the graph until the collector runs"
    finally:
        gc.enable()
