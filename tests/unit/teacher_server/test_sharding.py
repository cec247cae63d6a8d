"""What can be split over processes and what is refused with a sentence; how much each has; what one tells the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from teacher_server.cli import app
from teacher_server.config import ServerConfig
from teacher_server.models.loading import empty_teacher
from teacher_server.models.sharding import Shards
from teacher_server.parallel.passes import Back, Drop, Look, Pass, Run, read_pass, written
from teacher_server.parallel.start import split_teacher
from teaching_protocol.errors import InvalidSetting, ModelLoadError

Models = Callable[[str], Path]

numbers = st.integers(0, 2**40)
passes = (
    st.builds(Look, st.lists(numbers).map(tuple), st.booleans(), st.booleans())
    | st.builds(Run, numbers, numbers, numbers)
    | st.builds(Back, numbers)
    | st.builds(Drop, st.lists(numbers).map(tuple))
)


@given(passes, st.sampled_from([torch.float32, torch.bfloat16, torch.bool, torch.int64]), st.lists(st.integers(0, 3)))
def test_a_pass_is_one_line_and_is_read_as_it_was_written(wanted: Pass, dtype: torch.dtype, shape: list[int]) -> None:
    line = written(wanted, {"states": torch.zeros(shape, dtype=dtype)})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert read_pass(line) == (wanted, {"states": (str(dtype).removeprefix("torch."), tuple(shape))})


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "vit", "resnet", "t5"])
def test_a_family_without_a_plan_is_refused_before_anything_starts(model_type: str, model_folder: Models) -> None:
    with pytest.raises(
        ModelLoadError, match=f"no plan to split a {model_type}, expected a model that has one, such as llama"
    ):
        split_teacher(ServerConfig(model=str(model_folder(model_type)), tensor_parallel=2))


def test_heads_are_not_divided(model_folder: Models) -> None:
    said = "tensor_parallel is 3, but the model has 4 attention heads and 2 key-value heads, expected a number that divides both: 2$"
    with pytest.raises(ModelLoadError, match=said):
        split_teacher(ServerConfig(model=str(model_folder("llama")), tensor_parallel=3))
    with pytest.raises(ModelLoadError, match=r"divides both: 2$"):
        Shards(4).options(empty_teacher(model_folder("llama")).model)


def test_a_device_that_is_not_what_transformers_takes_is_refused(model_folder: Models) -> None:
    with pytest.raises(InvalidSetting, match="device is mps, but transformers splits over"):
        split_teacher(ServerConfig(model=str(model_folder("llama")), tensor_parallel=2, device="mps"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"device_map": "auto"}, "tensor_parallel with device_map: one splits every layer"),
        ({"compile": True}, "compile with tensor_parallel"),
        ({"tensor_parallel": 0}, "greater than or equal to 1"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ServerConfig.model_validate({"model": "m", "tensor_parallel": 2} | fields)


def test_the_plan_is_of_one_of_the_processes(model_folder: Models) -> None:
    words = ["plan", "--model", str(model_folder("llama")), "--rows", "4", "--tokens", "8"]
    plain = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    found = json.loads(CliRunner().invoke(app, [*words, "--json", "--tensor-parallel", "2"]).output)
    assert (plain["processes"], found["processes"]) == (1, 2)
    assert found["weights_served_bytes"] == plain["weights_served_bytes"]
    norms = (
        4 * 32 * 9 + 4 * 4 * 2
    )  # of four layers two each, the last one; and two tables of four angles: whole everywhere
    assert found["bytes"]["weights"] == (plain["bytes"]["weights"] - norms) // 2 + norms
    shown = CliRunner().invoke(app, [*words, "--tensor-parallel", "2"])
    assert "the share of each of 2 processes" in " ".join(shown.output.replace("│", " ").split()), shown.output
    assert "no plan to split a bert" in str(
        CliRunner().invoke(app, ["plan", "--model", str(model_folder("bert")), "--tensor-parallel", "2"]).exception
    )
