"""The examples in the help of every `teacher-server` command: lines to copy, each tried by a test; knows no flag."""

from __future__ import annotations

from types import MappingProxyType

from command_config.line import Example

__all__ = ["EXAMPLES", "TOKEN_EXAMPLES"]

EXAMPLES = MappingProxyType(
    {
        "serve": (
            Example("teacher-server serve --model minilm --port 50051", "a teacher for students on this machine"),
            Example("teacher-server serve --config teacher.yaml --set permits=512", "from a file, one field changed"),
            Example(
                "teacher-server serve --model minilm --host 0.0.0.0 --tls-cert teacher.pem --tls-key teacher.key "
                "--tokens tokens.json",
                "for students elsewhere",
            ),
            Example(
                "teacher-server serve --model minilm --device-map auto --device-memory 0=20GiB --device-memory cpu=60GiB",
                "weights that one device cannot hold",
            ),
            Example("teacher-server serve --model smollm2 --tensor-parallel 3", "every layer split over three devices"),
        ),
        "check-config": (
            Example("teacher-server check-config teacher.yaml", "every value, and where it came from"),
            Example("teacher-server check-config --model minilm --json", "the defaults, for a program"),
        ),
        "describe": (
            Example("teacher-server describe 127.0.0.1:50051", "what is served there"),
            Example("teacher-server describe 127.0.0.1:50051 --json", "its layers, widths and ports, for a program"),
        ),
        "finetune": (
            Example(
                "teacher-server finetune --model minilm --data mails.csv --label-column folder --out models/mails",
                "a head for your own labels",
            ),
            Example(
                "teacher-server finetune --model minilm --data uci_sentiment --train lora --out models/uci",
                "the body learns, too",
            ),
        ),
        "plan": (
            Example("teacher-server plan --model minilm", "how many students fit on this machine"),
            Example("teacher-server plan --model minilm --rows 64 --memory 40 --json", "larger steps, on 40 GiB"),
            Example(
                "teacher-server plan --model minilm --device-map auto --device-memory cpu=60GiB",
                "where the weights would lie",
            ),
        ),
        "doctor": (
            Example("teacher-server doctor --config teacher.yaml", "this machine, before it serves"),
            Example("teacher-server doctor 127.0.0.1:50051 --json", "a server that runs, for a program"),
        ),
        "fleet": (
            Example(
                "teacher-server fleet --model minilm --replicas 2 --min 1 --max 4",
                "replicas on this machine, under Ray",
            ),
            Example(
                "teacher-server fleet --config teacher.yaml --ray auto --gpus 1 --fleet-set up_queue_s=1 --json",
                "on a Ray cluster that is there; where it serves, for a program",
            ),
        ),
        "replace": (
            Example("teacher-server replace replica-1", "another replica serves first, then this one is drained"),
            Example("teacher-server replace replica-1 --name teachers --ray auto --json", "of a fleet by its name"),
        ),
    }
)
"""By the command's name."""

TOKEN_EXAMPLES = MappingProxyType(
    {
        "add": (
            Example("teacher-server token add alice --tokens tokens.json --output alice.token", "let alice in"),
            Example("teacher-server token add bob --tokens tokens.json", "show bob's token, once"),
        ),
        "list": (Example("teacher-server token list --tokens tokens.json --json", "who may come in"),),
        "revoke": (Example("teacher-server token revoke alice --tokens tokens.json", "and who no more"),),
    }
)
"""The same of `teacher-server token`."""
