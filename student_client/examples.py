"""The examples in the help of every `student-client` command: lines to copy, each tried by a test; knows no flag."""

from __future__ import annotations

from types import MappingProxyType

from command_config.line import Example

__all__ = ["EXAMPLES"]

EXAMPLES = MappingProxyType(
    {
        "init": (
            Example("student-client init run.yaml", "asks, and writes a configuration with a sentence on each field"),
            Example(
                "student-client init run.yaml --yes --teacher 127.0.0.1:50051 --data mails.csv --label-column folder",
                "asks nobody but the teacher",
            ),
        ),
        "train": (
            Example("student-client train --config run.yaml", "what `init` wrote"),
            Example(
                "student-client train --data mails.csv --label-column folder --teacher 127.0.0.1:50051 "
                "--method talking,fitnets --output runs/mine",
                "your own file, two methods at once",
            ),
            Example("student-client train --resume --output runs/mine", "go on after Ctrl-C or a crash"),
            Example(
                "student-client train --data newsgroups --method task_only --max-steps 200 --json",
                "no teacher; the result for a program",
            ),
        ),
        "fleet": (
            Example("student-client fleet fleet.yaml --dry-run", "what would run where"),
            Example("student-client fleet fleet.yaml --at-once 2 --json", "two at a time; fleet.json at the end"),
            Example("student-client fleet fleet.yaml --print slurm", "the same on a cluster"),
            Example("student-client fleet fleet.yaml --on ray --ray auto", "on a Ray cluster that is there"),
        ),
        "select": (
            Example(
                "student-client select --data uci_sentiment --teacher 127.0.0.1:50051 --max-steps 200 --episodes 5 "
                "--output runs/selector",
                "which knowledge pays when, for `train --method selection`",
            ),
        ),
        "evaluate": (
            Example("student-client evaluate runs/mine", "on the test rows, without a teacher"),
            Example("student-client evaluate runs/mine --split validation --json", "for a program"),
        ),
        "export": (
            Example("student-client export runs/mine student.onnx", "for ONNX Runtime; needs nothing of this package"),
            Example("student-client export runs/mine student.pt2 --json", "for `torch.export.load`; inputs as JSON"),
        ),
        "compare": (
            Example("student-client compare --suite smoke", "whether the machinery runs, in a minute"),
            Example("student-client compare --suite text --only talking,one_way --seeds 3", "two methods, three seeds"),
        ),
        "search": (
            Example(
                "student-client search --suite text --task sentiment --variant talking --space space.yaml --trials 16 "
                "--teacher 127.0.0.1:50051",
                "settings of one variant, on a Ray that is started here",
            ),
            Example(
                "student-client search --suite text --task sentiment --variant task_only --space space.yaml --ray auto --json",
                "on a Ray cluster that is there; the best settings for a program",
            ),
        ),
        "ping": (
            Example("student-client ping 127.0.0.1:50051", "who serves there, and how far away"),
            Example("student-client ping 127.0.0.1:50051 --json", "the same for a program"),
        ),
        "doctor": (
            Example("student-client doctor 127.0.0.1:50051", "what to change before a long run"),
            Example("student-client doctor 127.0.0.1:50051 --limit-s 10 --json", "for a program"),
        ),
        "demo": (
            Example("student-client demo", "a teacher and three students, about three minutes"),
            Example("student-client demo --data mails.csv --label-column folder --steps 100", "on your own file"),
        ),
        "check-config": (
            Example("student-client check-config run.yaml", "every value, and where it came from"),
            Example("student-client check-config --set training.lr=5e-4 --json", "the defaults but one, for a program"),
        ),
    }
)
"""By the command's name."""
