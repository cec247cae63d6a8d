"""A language model's largest logits over HTTP as lists in JSON, as distillation trainers ask a teacher server for them.

It stands for the way of TRL's and other distillation trainers: a FastAPI application behind uvicorn, a POST of token ids, an
answer of the top k values and their ids for every token. Two favours to it: it leaves the log-softmax out (ours gives logits, too),
and answers with the fastest of FastAPI's own ways, a response that is not validated. One lock around the model, as an engine has one queue.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from workers import obey


def serve(model: str) -> None:
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse
    from transformers import AutoModelForCausalLM

    teacher, lock, app = (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(),
        threading.Lock(),
        FastAPI(),
    )

    @app.post("/topk")
    def topk(request: dict[str, Any]) -> JSONResponse:
        ids = torch.tensor(request["input_ids"])
        with lock, torch.inference_mode():
            values, places = teacher(input_ids=ids, use_cache=False).logits.topk(request["top"])
        return JSONResponse({"logits": values.tolist(), "ids": places.tolist()})

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/topk {teacher.config.vocab_size}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


def client(address: str) -> None:
    import requests

    session = requests.Session()

    def ask(ids: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
        reply = session.post(address, json={"input_ids": ids.tolist(), "top": top}, timeout=300)
        reply.raise_for_status()
        found = reply.json()
        return torch.tensor(found["logits"]), torch.tensor(found["ids"])

    def prepare(order: dict[str, Any]) -> Callable[[], object]:
        return lambda: ask(torch.randint(order["vocabulary"], (order["rows"], order["tokens"])), order["top"])

    torch.manual_seed(0)
    values, places = ask(torch.arange(2 * 16).reshape(2, 16), 8)
    obey(prepare, logits=values.tolist(), ids=places.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", metavar="MODEL_FOLDER")
    parser.add_argument("--client", metavar="ADDRESS")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.serve:
        serve(arguments.serve)
    else:
        client(arguments.client)


if __name__ == "__main__":
    main()
