"""A training loop of your own against a served teacher: the student learns to answer as the teacher does.

Start a teacher first:  teacher-server serve --model NAME_OR_FOLDER --port 50051
Then:                   python examples/own_loop.py 127.0.0.1:50051
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from student_client import RemoteTeacher

TEXTS = ("the film was a delight", "dull, long and loud", "a plot with a heart", "nothing works here")
WIDTH = 32


def as_bytes(texts: tuple[str, ...]) -> torch.Tensor:
    """The port `text`: UTF-8 padded with zeros, [batch, bytes] uint8."""
    longest = max(len(text.encode()) for text in texts)
    return torch.tensor([list(text.encode().ljust(longest, b"\0")) for text in texts], dtype=torch.uint8)


def main(address: str) -> None:
    torch.manual_seed(0)
    student = nn.Embedding(len(TEXTS), 16)
    encoder, decoder = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 16)
    optimizer = torch.optim.Adam([*student.parameters(), *encoder.parameters(), *decoder.parameters()], lr=1e-2)
    text = as_bytes(TEXTS)
    with RemoteTeacher(
        address, student="own-loop", message_width=WIDTH, message_tokens=1, answer_from="message_and_input", seed=0
    ) as teacher:
        for step in range(20):
            states = student.weight[:, None, :]  # [batch, 1 token, 16]
            views = teacher.forward_ports({"message": encoder(states), "text": text}, ["answer", "state_consistency"])
            loss = (decoder(views["answer"]) - states).square().mean() + 0.1 * views["state_consistency"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            teacher.step(lr=1e-2)
            if step % 5 == 4:
                print(f"step {step + 1}: loss {loss.item():.4f}, teacher computed {teacher.seconds:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1])
