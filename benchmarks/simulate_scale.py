"""From 1 to 1,000 students, 1 to 64 teachers, 1 to 100 GbE: a discrete-event model, calibrated and validated on this machine.

Without a flag: the sweeps and plots of docs/scale.md, from `results/scale-calibration.json`; needs no idle machine. `--calibrate` measures the
constants (two minutes), `--validate` runs 1 to 16 real students and prints model against measured (three minutes); both want
the machine to themselves. `--one STUDENTS REPLICAS GBPS` simulates one case and prints it whole. The GPU is assumed: its numbers are flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import psutil
from recording import Record, parser
from scale.cases import Scenario
from scale.costs import CALIBRATION, AssumedGpu, Costs, measured, to_figures
from scale.sweeps import GPU_SETTINGS, SWEEPS, run_sweep, show
from scale.world import simulate


def calibrate(arguments: argparse.Namespace) -> None:
    from scale import measuring
    from scale.own_work import student_work

    threads = psutil.cpu_count() or 1
    with Record("scale-calibration", arguments) as record:
        samples = measuring.engine_samples(threads, arguments.rounds)
        engine, rows = measuring.engine_of(samples, threads)
        record.table("engine", rows)
        ends, wake_s, none, rows = measuring.ends_and_wake(arguments.seconds)
        record.table("calls", rows)
        local, spread = {"none": none}, 0.0
        for size in ("tiny", "small", "complementary"):
            local[size], spread = student_work(size, 8, 64 if size != "tiny" else 32, 5 * arguments.rounds)
        machine = f"measured on {record.machine['cores']} cores, {record.machine['cpu']}"
        costs = Costs(engine, ends, wake_s, local, spread, machine)
        record.figures |= {"costs": to_figures(costs), "samples": dataclasses.asdict(samples)}
        record.table("students' own work, ms", [{"student": name, **_ms(each)} for name, each in local.items()])
        print(f"a call waits {wake_s * 1e3:.2f} ms beyond all CPU time; a student's own work spreads by {spread:.1%}")


def _ms(local: object) -> dict[str, float]:
    return {name: value * 1e3 for name, value in dataclasses.asdict(local).items()}  # type: ignore[call-overload]


def validate(arguments: argparse.Namespace) -> None:
    from scale.sweeps import plot_validation
    from scale.validation import validate as against_real_runs

    with Record("scale-validation", arguments) as record:
        costs = measured(arguments.calibration)
        rows = against_real_runs(
            arguments.counts, [(8, 64), (8, 16)], costs, arguments.seconds + 1, min(3, arguments.rounds)
        )
        record.table("validation", rows)
        errors = [abs(row["error"]) for row in rows]
        record.figures |= {"largest error": max(errors), "mean error": sum(errors) / len(errors)}
        print(f"error of the throughput: {sum(errors) / len(errors):.1%} in the mean, {max(errors):.1%} at the most")
        record.plot(plot_validation(rows, record))


def main() -> None:
    flags = parser(__doc__)
    does = flags.add_mutually_exclusive_group()
    does.add_argument("--calibrate", action="store_true")
    does.add_argument("--validate", action="store_true")
    does.add_argument("--one", nargs=3, type=float, metavar=("STUDENTS", "REPLICAS", "GBPS"))
    flags.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS), help="of the sweeps")
    flags.add_argument("--calibration", type=Path, default=CALIBRATION)
    flags.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    flags.add_argument("--rounds", type=int, default=4, help="of measurements that are counted one by one")
    flags.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="students of --validate")
    flags.add_argument("--way", default="bf16", choices=["none", "bf16", "int8"], help="of --one: how tensors travel")
    flags.add_argument("--width", type=int, default=1024, help="of --one: of the messages")
    flags.add_argument(
        "--cpu", action="store_true", help="of --one: the teacher that was measured, not the assumed GPU"
    )
    for field in dataclasses.fields(AssumedGpu):
        flag = f"--gpu-{field.name.replace('_', '-')}"
        flags.add_argument(flag, type=float, default=field.default, help="assumed, not measured")
    arguments = flags.parse_args()
    if arguments.calibrate:
        calibrate(arguments)
        return
    if arguments.validate:
        validate(arguments)
        return
    known = measured(arguments.calibration)
    gpu = AssumedGpu(
        **{field.name: getattr(arguments, f"gpu_{field.name}") for field in dataclasses.fields(AssumedGpu)}
    )
    if arguments.one:
        students, replicas, gbps = arguments.one
        settings = {} if arguments.cpu else GPU_SETTINGS
        case = Scenario(
            int(students), int(replicas), gbps=gbps, way=arguments.way, width=arguments.width, settings=settings
        )
        show(simulate(case, known if arguments.cpu else gpu.costs(known)))
        return
    for name in arguments.only:
        with Record(f"scale-{name}", arguments) as record:
            run_sweep(name, known, gpu, record)


if __name__ == "__main__":
    main()
