"""hivemind's own server and its RemoteExpert, with the frozen span as the expert.

It stands for the systems that run gradients for remote clients: hivemind 1.1.12 as it is, its task pools that batch
calls of several clients, its p2p daemon, a connection handler per client process as its documentation advises. Its backward runs the
forward again (it keeps no graph); no optimizer is given, since the span is frozen. Tensors travel as float32.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from hivemind.dht import DHT
from hivemind.moe.client.expert import create_remote_experts
from hivemind.moe.expert_uid import ExpertInfo
from hivemind.moe.server.module_backend import ModuleBackend
from hivemind.moe.server.server import Server
from hivemind.p2p import PeerID
from hivemind.utils.tensor_descr import BatchTensorDescriptor
from span import FrozenSpan, flags, work

UID, HANDLERS, MOST_ROWS = "span.0", 4, 1024


def serve(model: str, entry: int, exit: int, tokens: int) -> None:
    span = FrozenSpan(model, entry, exit)
    dht = DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    states = BatchTensorDescriptor(tokens, span.width)
    backend = ModuleBackend(UID, span, args_schema=(states,), outputs_schema=states, max_batch_size=MOST_ROWS)
    server = Server(dht, {UID: backend}, num_connection_handlers=HANDLERS, device=torch.device("cpu"), start=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    address = {"peers": [str(each) for each in dht.get_visible_maddrs()], "id": dht.peer_id.to_base58()}
    print(json.dumps(address | {"width": span.width}), flush=True)
    try:
        signal.pause()
    finally:
        server.shutdown()
        dht.shutdown()


def client(line: str) -> None:
    address = json.loads(line)
    dht = DHT(initial_peers=address["peers"], client_mode=True, start=True)
    (expert,) = create_remote_experts([ExpertInfo(UID, PeerID.from_base58(address["id"]))], dht)
    assert expert is not None
    work(expert, address["width"])
    dht.shutdown()


def main() -> None:
    arguments = flags(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.serve:
        serve(arguments.serve, *arguments.span, arguments.tokens)
    else:
        client(arguments.client)


if __name__ == "__main__":
    main()
