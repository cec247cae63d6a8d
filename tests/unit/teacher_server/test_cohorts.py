from __future__ import annotations

import gc
import weakref

import pytest
import torch

from teacher_server.cohorts import Cohort, GraphCache, storage_place, weigh_graph
from teacher_server.metrics import Metrics


def cohort(session: str, call: str, size_bytes: int) -> Cohort:
    return Cohort(((session, call),), {}, {"answer": torch.zeros(2)}, size_bytes)


def fill(cache: GraphCache, *sizes: tuple[str, str, int]) -> None:
    for session, call, size in sizes:
        cache.put((session, call), cohort(session, call, size))


def test_a_graph_is_handed_over_once() -> None:
    metrics = Metrics()
    cache = GraphCache(100, 100, metrics)
    fill(cache, ("s", "1", 10))
    assert cache.size_bytes == 10
    assert cache.take(("s", "1")) is not None
    assert cache.take(("s", "1")) is None
    assert cache.size_bytes == 0
    assert metrics.registry.get_sample_value("teacher_graph_cache_hits_total") == 1


def test_the_servers_budget_lets_the_oldest_of_anybody_go() -> None:
    metrics = Metrics()
    cache = GraphCache(100, 100, metrics)
    fill(cache, ("a", "1", 40), ("b", "1", 40), ("b", "2", 40))
    assert cache.take(("a", "1")) is None
    assert cache.size_bytes == 80
    assert metrics.registry.get_sample_value("teacher_graph_cache_evictions_total") == 1
    assert metrics.registry.get_sample_value("teacher_graph_cache_bytes") == 80


def test_the_sessions_budget_lets_its_own_oldest_go() -> None:
    cache = GraphCache(1000, 50, Metrics())
    fill(cache, ("a", "1", 40), ("b", "1", 40), ("b", "2", 40))
    assert cache.take(("b", "1")) is None
    assert cache.take(("a", "1")) is not None
    assert cache.take(("b", "2")) is not None


def test_a_graph_over_the_budget_is_not_kept() -> None:
    cache = GraphCache(10, 100, Metrics())
    fill(cache, ("a", "1", 11))
    assert cache.size_bytes == 0
    nothing = GraphCache(0, 0, Metrics())
    fill(nothing, ("a", "1", 1))
    assert nothing.take(("a", "1")) is None


def test_drop_and_clear_free_the_tensors() -> None:
    cache = GraphCache(100, 100, Metrics())
    fill(cache, ("a", "1", 1), ("a", "2", 1), ("b", "1", 1))
    held = [weakref.ref(each.outputs["answer"]) for each in cache._kept.values()]
    cache.drop("a")
    gc.collect()
    assert [ref() is None for ref in held] == [True, True, False]
    cache.clear()
    gc.collect()
    assert held[2]() is None
    assert cache.size_bytes == 0


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
