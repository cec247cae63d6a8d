"""A small student in a process of its own: trains against one teacher after another, each time from its seed.

argv: student name, seed, addresses. For each address it says `ready` when enrolled, begins at the next line of
its input, and prints the hashes of all it ends with.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any

import torch
from torch import nn

from student_client import RemoteTeacher

STEPS = 12


def train(address: str, name: str, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    student = nn.Sequential(nn.Embedding(60, 16), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8))
    head = nn.Linear(8, 3)
    parameters = [*student.parameters(), *head.parameters()]
    options: dict[str, Any] = {"message_tokens": 5, "answer_from": "message_and_input", "seed": seed}
    with RemoteTeacher(address, student=name, message_width=8, **options) as teacher:
        say("ready")
        sys.stdin.readline()
        start = time.monotonic()
        for _ in range(STEPS):
            ids = torch.randint(5, 60, (4, 5))
            inputs = {"message": student(ids), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            found = teacher.forward_ports(inputs, ["answer", "state_consistency", "logits"])
            task = nn.functional.cross_entropy(head(inputs["message"].mean(1)), found["logits"].argmax(1))
            loss = task + (found["answer"] - inputs["message"]).square().mean() + 0.1 * found["state_consistency"]
            for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.data -= 0.1 * grad
            teacher.step(lr=0.01)
        state = teacher.export_state()
    weights = b"".join(each.detach().numpy().tobytes() for each in parameters)
    hashes = {"student": hashlib.sha256(weights).hexdigest(), "session": hashlib.sha256(state).hexdigest()}
    return hashes | {"start": start, "end": time.monotonic(), "steps": teacher.steps}


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    torch.set_num_threads(1)
    for address in sys.argv[3:]:
        say(json.dumps(train(address, sys.argv[1], int(sys.argv[2]))))
