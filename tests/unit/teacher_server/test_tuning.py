from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from teacher_server.finetuning.tuning import Epoch, Examples, Objective, Plan, tune
from teaching_protocol.errors import NonFiniteError

PLAN = Plan(
    learning_rates=(0.05,),
    epochs=12,
    batch_size=8,
    patience=12,
    weight_decay=0.0,
    warmup=0.1,
    max_grad_norm=1.0,
    seed=0,
)


def linear_task(rows: int, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(rows, 5, generator=generator)
    sides = inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0]) + noise * torch.randn(rows, generator=generator)
    return inputs, (sides > 0).long()


def run(plan: Plan, dropout: float = 0.0, noise: float = 0.0) -> tuple[torch.nn.Module, Epoch, list[Epoch], Examples]:
    torch.manual_seed(3)
    module = torch.nn.Sequential(torch.nn.Dropout(dropout), torch.nn.Linear(5, 2))
    told: list[Epoch] = []
    train, held = (
        Examples(lambda rows, inputs=inputs: module(inputs[rows]), targets)
        for inputs, targets in (linear_task(41, noise), linear_task(60, noise))
    )
    best, epochs = tune(module, train, held, Objective("single_label"), plan, Accelerator(cpu=True), told.append)
    assert list(epochs) == told
    return module, best, told, held


def accuracy(module: torch.nn.Module, held: Examples) -> float:
    assert not module.training
    found = held.outputs(torch.arange(len(held.targets))).argmax(-1)
    return float((found == held.targets).double().mean())


def test_losses_and_metrics_are_the_plain_ones() -> None:
    rng = np.random.default_rng(0)
    logits, classes = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    exponents = np.exp(logits)
    expected = -np.mean(np.log(exponents[np.arange(6), classes] / exponents.sum(1)))
    objective = Objective("single_label")
    outputs, labels = torch.from_numpy(logits), torch.from_numpy(classes)
    assert objective.metric == "accuracy"
    assert objective.loss(outputs, labels).item() == pytest.approx(expected)
    assert objective.score(outputs, labels) == np.mean(logits.argmax(1) == classes)

    found, targets = rng.normal(size=(6, 1)), rng.normal(5, 3, 6)
    objective = Objective("regression", shift=4.0, scale=2.5)
    outputs, numbers = torch.from_numpy(found), torch.from_numpy(targets)
    assert objective.metric == "rmse"
    assert objective.loss(outputs, numbers).item() == pytest.approx(np.mean((found[:, 0] - (targets - 4) / 2.5) ** 2))
    assert objective.score(outputs, numbers) == pytest.approx(
        math.sqrt(np.mean((found[:, 0] * 2.5 + 4 - targets) ** 2))
    )


def test_it_learns_and_ends_with_the_weights_of_the_best_epoch() -> None:
    module, best, epochs, held = run(replace(PLAN, learning_rates=(0.5,)), noise=3.0)
    assert best.validation > epochs[0].validation
    assert best == max(epochs, key=lambda each: (each.validation, -each.validation_loss))
    assert best is not epochs[-1], "the case must tell the best epoch from the last one"
    assert accuracy(module, held) == best.validation


def test_of_a_regression_the_lowest_error_is_the_best() -> None:
    inputs = linear_task(40)[0]
    targets = inputs.sum(1) * 3 + 100
    objective = Objective("regression", float(targets.mean()), float(targets.std()))
    module = torch.nn.Linear(5, 1)
    examples = Examples(lambda rows: module(inputs[rows]), targets)
    best, epochs = tune(module, examples, examples, objective, PLAN, Accelerator(cpu=True), lambda epoch: None)
    assert best.validation == min(epoch.validation for epoch in epochs) < 1.0 < epochs[0].validation


def test_a_learning_rate_is_left_when_nothing_gets_better() -> None:
    _, _, epochs, _ = run(replace(PLAN, epochs=40, patience=3), noise=1.0)
    ranks = [(epoch.validation, -epoch.validation_loss) for epoch in epochs]
    assert len(epochs) < 40
    assert ranks.index(max(ranks)) == len(ranks) - 1 - 3


def test_every_learning_rate_starts_from_the_same_weights_and_seed() -> None:
    rates = (0.001, 0.05)
    _, best, both, _ = run(replace(PLAN, learning_rates=rates), dropout=0.3)
    alone = [epoch for rate in rates for epoch in run(replace(PLAN, learning_rates=(rate,)), dropout=0.3)[2]]
    assert both == alone
    assert best.learning_rate == 0.05


def test_what_does_not_end_in_numbers_is_left_or_refused() -> None:
    module, best, epochs, held = run(replace(PLAN, learning_rates=(1e38, 0.05)))
    assert best.learning_rate == 0.05
    assert sum(epoch.learning_rate == 1e38 for epoch in epochs) < PLAN.epochs
    assert accuracy(module, held) == best.validation
    with pytest.raises(NonFiniteError, match=r"with learning rates 1e\+38; lower the learning rate"):
        run(replace(PLAN, learning_rates=(1e38,)))


def test_batch_norms_keep_their_statistics() -> None:
    inputs, targets = linear_task(40)
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    examples = Examples(lambda rows: module(inputs[rows]), targets)
    tune(module, examples, examples, Objective("single_label"), PLAN, Accelerator(cpu=True), lambda epoch: None)
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, before[name]), name
