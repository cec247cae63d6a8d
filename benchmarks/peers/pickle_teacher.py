"""A teacher over gRPC as people write it in an afternoon: pickled tensors, one lock around the model, graphs in a dict.

It stands for the home-made remote layer: no .proto (a generic method of bytes), `pickle.dumps` of tensors both ways, a thread pool
as in gRPC's tutorial, a lock so that one call at a time runs the model, and the graph of each forward kept under a random id until
its backward comes. Nothing bounds that dict, nothing survives a lost call, and whoever can connect can run code: unpickling is
why the product has none of it. With `--codec` it does all of ours' work: each client has a codec at both edges of the span, whose
gradients are gathered.
"""

from __future__ import annotations

import copy
import pickle
import signal
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import grpc
import torch
from span import Codec, FrozenSpan, flags, work

OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def serve(model: str, entry: int, exit: int, codec: str | None) -> None:
    span, lock = FrozenSpan(model, entry, exit), threading.Lock()
    graphs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    first, codecs = None if codec is None else Codec(codec), dict[str, Codec]()

    def forward(data: bytes, context: grpc.ServicerContext) -> bytes:
        student, message = pickle.loads(data)  # noqa: S301
        message.requires_grad_()
        name = uuid.uuid4().hex
        with lock:
            if first is None:
                answer = span(message)
            else:
                if student not in codecs:
                    codecs[student] = copy.deepcopy(first)
                own = codecs[student]
                answer = own.encode(span(own.decode(message)))
            graphs[name] = message, answer
        return pickle.dumps((name, answer.detach()))

    def backward(data: bytes, context: grpc.ServicerContext) -> bytes:
        name, gradient = pickle.loads(data)  # noqa: S301
        with lock:
            message, answer = graphs.pop(name)
            answer.backward(gradient)
        return pickle.dumps(message.grad)

    server = grpc.server(ThreadPoolExecutor(max_workers=10), options=OPTIONS)
    handlers = {each.__name__: grpc.unary_unary_rpc_method_handler(each) for each in (forward, backward)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Teacher", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port} {span.width}", flush=True)
    signal.pause()


def client(address: str, width: int) -> None:
    student = uuid.uuid4().hex
    channel = grpc.insecure_channel(address, options=OPTIONS)
    forward, backward = (channel.unary_unary(f"/Teacher/{name}") for name in ("forward", "backward"))

    class Remote(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, message: torch.Tensor) -> torch.Tensor:
            ctx.name, answer = pickle.loads(forward(pickle.dumps((student, message.detach()))))  # noqa: S301
            return answer

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return pickle.loads(backward(pickle.dumps((ctx.name, gradient))))  # noqa: S301

    work(Remote.apply, width)


def main() -> None:
    made = flags(__doc__)
    made.add_argument("--codec", metavar="FILE", help="safetensors: that with which every client begins")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.serve:
        serve(arguments.serve, *arguments.span, arguments.codec)
    else:
        address, width = arguments.client.split()
        client(address, int(width))


if __name__ == "__main__":
    main()
