"""A discrete-event model of many students and their teachers; `benchmarks/simulate_scale.py` is its command."""
