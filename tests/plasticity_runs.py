"""Runs of the plasticity study, made up."""

from __future__ import annotations


def case1_fields(b2: float, root: float, seed: int, tasks: int) -> dict:
    """What all records of one run of `case1` have in common."""
    return {
        "run": f"{b2}-{root}-{seed}", "experiment": "case1", "remedy": "none", "learning_rate": 1e-3, "adam_b2": b2,
        "adam_eps_root": root, "seed": seed, "tasks": tasks, "width": 8, "l2": 1e-5, "data": "digits",
    }  # fmt: skip
