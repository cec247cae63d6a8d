"""A student made of SmolLM2's own layers learns from the served SmolLM2, by its likeliest tokens and by all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from student_client.config import load_run_config
from student_client.training.runs import train
from teacher_server.models.packaged import packaged_folder
from tests.integration.processes import ROOT, ServerProcess
from tests.unit.student_client.run_setup import quiet


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("by_head", [False, True], ids=["likeliest", "all"])
def test_a_student_of_smollm2_learns(by_head: bool, tmp_path: Path) -> None:
    """Three of its thirty layers, on pages of this documentation: the divergence and the perplexity fall by a lot."""
    folder = packaged_folder("smollm2")
    assert folder is not None
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    (tmp_path / "pages.txt").write_text("\n".join(page.read_text() for page in pages))
    process = ServerProcess({"smollm2": {"model": str(folder), "metrics_port": -1}})
    fields = {
        "data.name": "file",
        "data.path": tmp_path / "pages.txt",
        "data.level": "next_token",
        "data.block_bytes": 240,
        "data.labelled": 40,
        "data.unlabelled": 24,
        "data.validation": 12,
        "data.test": 12,
        "student.pretrained": str(folder),
        "student.keep_every": 10,
        "method.names": "soft_labels",
        "method.soft_labels.temperature": 1.0,
        "method.soft_labels.head": str(folder) if by_head else None,
        "teacher.address": process.addresses["smollm2"].name,
        "training.max_steps": 30,
        "training.batch_size": 4,
        "training.lr": 3e-4,
        "training.warmup_steps": 3,
        "training.evaluate_every": 10,
        "training.log_every": 1,
        "training.checkpoint_every": 30,
        "training.tensorboard": False,
        "training.device": "cpu",
        "output": tmp_path / "run",
    }
    result = train(load_run_config(None, fields), progress=quiet())
    assert process.close() == 0
    assert result is not None
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    divergence = [line["parts"]["soft_labels"] for line in lines]
    assert sum(divergence[-5:]) < 0.6 * sum(divergence[:5]), divergence
    assert len(divergence) == 30, divergence
    perplexities = [line["validation"]["perplexity"] for line in lines if "validation" in line]
    assert perplexities[-1] < 0.8 * perplexities[0]
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run/student")
    assert student.config.num_hidden_layers == 3
