from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

from teaching_protocol import verbs
from teaching_protocol.channel import channel_options, server_options
from tests.unit.teaching_protocol.values import MESSAGES


@pytest.mark.parametrize(
    ("port", "expected"),
    [("answer", True), ("answer_state", True), ("teacher_message.exit", True), ("state_consistency", True),
     ("cross_consistency", True), ("logits", False), ("logits.top5", False), ("hidden.3", False), ("pooled", False),
     ("attention_mask", False), ("last_hidden_state", False), ("logprobs.top5.t200", False), ("tokens.top5", False)],
)  # fmt: skip
def test_which_ports_have_a_gradient(port: str, expected: bool) -> None:
    assert verbs.has_gradient(port) is expected


@pytest.mark.parametrize("cls", MESSAGES, ids=str)
def test_values_are_frozen_and_have_defaults(cls: type) -> None:
    value = cls()
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)


def test_a_default_mapping_cannot_be_shared_by_mistake() -> None:
    with pytest.raises(TypeError):
        verbs.ForwardRequest().inputs["message"] = torch.zeros(1)  # type: ignore[index]
    assert isinstance(verbs.Call().cancelled, threading.Event)
    assert verbs.Call().cancelled is not verbs.Call().cancelled


def test_both_ends_agree_on_size_and_keepalive() -> None:
    client, server = dict(channel_options(1000)), dict(server_options(1000))
    for key in ("grpc.max_send_message_length", "grpc.max_receive_message_length"):
        assert client[key] == server[key] == 1000
    assert server["grpc.http2.min_ping_interval_without_data_ms"] < client["grpc.keepalive_time_ms"]
    assert server["grpc.so_reuseport"] == 0  # or a taken port would not be noticed
