from __future__ import annotations

import pytest
import torch

from teacher_server.sessions.optimizers import OPTIMIZERS, Update, build_optimizer, update_together
from teaching_protocol.errors import InvalidSetting
from teaching_protocol.verbs import OptimizerSettings


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_settings_reach_the_optimizer(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    settings = OptimizerSettings(name, weight_decay=0.3, beta1=0.5, beta2=0.6, eps=1e-3, momentum=0.4)
    optimizer = build_optimizer([weight], settings)
    group = optimizer.param_groups[0]
    assert type(optimizer).__name__.lower() == name
    assert group["weight_decay"] == 0.3
    assert group["momentum"] == 0.4 if name == "sgd" else (group["betas"], group["eps"]) == ((0.5, 0.6), 1e-3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (OptimizerSettings("lion"), "'lion' is unknown; use one of adam, adamw, sgd"),
        (OptimizerSettings(beta1=1.0), "'adamw': Invalid beta"),
        (OptimizerSettings("adam", eps=-1.0), "'adam': Invalid epsilon"),
        (OptimizerSettings("sgd", weight_decay=-1.0), "'sgd': Invalid weight_decay"),
    ],
)
def test_bad_settings(settings: OptimizerSettings, sentence: str) -> None:
    with pytest.raises(InvalidSetting, match=sentence):
        build_optimizer([torch.nn.Parameter(torch.ones(1))], settings)


def stepped(name: str, is_together: bool) -> list[torch.Tensor]:
    """Three optimizers of different ages, one of equal settings but another rate, parameters without a gradient."""
    generator = torch.Generator().manual_seed(0)
    weights = [[torch.nn.Parameter(torch.randn(3, 2, generator=generator)) for _ in range(2)] for _ in range(4)]
    optimizers = [build_optimizer(each, OptimizerSettings(name, momentum=0.5)) for each in weights]
    for turn, chosen in enumerate(((0, 1), (0, 1, 2, 3), (1, 2, 3), (0, 1, 2, 3))):
        updates = []
        for place in chosen:
            for number, parameter in enumerate(weights[place]):
                grad = torch.randn(3, 2, generator=generator)
                parameter.grad = None if (turn + number + place) % 4 == 0 else grad
            updates.append(Update(optimizers[place], 0.1 if place < 3 else 0.3))
        for group in [updates] if is_together else [[update] for update in updates]:
            update_together(group)
        for parameters in weights:
            for parameter in parameters:
                parameter.grad = None
    return [parameter.detach() for each in weights for parameter in each] + [
        value for each in optimizers for state in each.state.values() for value in state.values() if value is not None
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_together_is_bit_for_bit_one_after_the_other(name: str) -> None:
    together, one_by_one = stepped(name, True), stepped(name, False)
    assert len(together) == len(one_by_one) > 8
    assert all(torch.equal(one, other) for one, other in zip(together, one_by_one, strict=True))
