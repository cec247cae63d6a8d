"""A small student in a process of its own: trains against a teacher and prints the hash of all it ends with.

argv: address, student name, seed. Says `ready` when enrolled and begins at the first line of its input.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time

import torch
from torch import nn

from student_client import RemoteTeacher

STEPS = 12


def main(address: str, name: str, seed: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    student = nn.Sequential(nn.Embedding(60, 16), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8))
    head = nn.Linear(8, 3)
    parameters = [*student.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    options = {"message_width": 8, "message_tokens": 5, "answer_from": "message_and_input", "seed": seed}
    with RemoteTeacher(address, student=name, **options) as teacher:
        print("ready", flush=True)  # noqa: T201
        sys.stdin.readline()
        start = time.monotonic()
        for _ in range(STEPS):
            ids = torch.randint(5, 60, (4, 5))
            inputs = {"message": student(ids), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            found = teacher.forward_ports(inputs, ["answer", "state_consistency", "logits"])
            task = nn.functional.cross_entropy(head(inputs["message"].mean(1)), found["logits"].argmax(1))
            loss = task + (found["answer"] - inputs["message"]).square().mean() + 0.1 * found["state_consistency"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            teacher.step(lr=0.01)
        state = teacher.export_state()
        facts = {
            "student": hashlib.sha256(b"".join(each.detach().numpy().tobytes() for each in parameters)).hexdigest(),
            "session": hashlib.sha256(state).hexdigest(),
            "start": start, "end": time.monotonic(), "steps": teacher.steps,
        }  # fmt: skip
    print(json.dumps(facts), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
