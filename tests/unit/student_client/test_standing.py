from __future__ import annotations

import json
from pathlib import Path

from student_client.reporting.standing import Standing, read_standing


def test_it_is_that_of_the_log(tmp_path: Path) -> None:
    assert read_standing(tmp_path) == Standing()
    log = tmp_path / "metrics.jsonl"
    log.write_text(
        '{"step": 4, "loss": 0.5, "validation": {"loss": 1.0, "accuracy": 0.75}}\n{"step": 8, "loss": 0.25}\n'
    )
    assert read_standing(tmp_path) == Standing(8, 0.25, "accuracy", 0.75)
    assert read_standing(tmp_path).said == "accuracy 0.750"
    log.write_text('{"step": 4, "loss": null}\n{"ste')
    assert read_standing(tmp_path) == Standing(4)


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(10_000)))
    assert read_standing(tmp_path).step == 9_999
