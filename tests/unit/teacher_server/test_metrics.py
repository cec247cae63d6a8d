from __future__ import annotations

from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from teacher_server.metrics import Metrics


def test_every_instrument_is_registered_under_a_name_of_its_own() -> None:
    metrics = Metrics()
    instruments = [name for name in vars(metrics) if name != "registry"]
    families = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    families = [family for family in families if not family.name.endswith("_created")]
    assert len(families) == len(instruments)
    assert all(family.name.startswith("teacher_") and family.documentation.endswith(".") for family in families)


def test_two_servers_in_one_process_do_not_share_them() -> None:
    one, other = Metrics(), Metrics()
    one.session_steps.inc()
    assert other.registry.get_sample_value("teacher_session_steps_total") == 0


def test_every_instrument_is_touched_somewhere() -> None:
    package = Path(__file__).parents[3] / "teacher_server"
    code = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "metrics.py")
    for name in vars(Metrics()):
        assert f"metrics.{name}" in code, name
