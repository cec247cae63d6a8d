from __future__ import annotations

import pytest
import torch

from teacher_server.optimizers import OPTIMIZERS, build_optimizer
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
