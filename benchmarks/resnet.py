"""A training step of ResNet-20 in neoteny and in PyTorch, on this machine's CPU.

    python benchmarks/resnet.py [--norm batch group] [--seconds S] [--repeats N] [--out FILE]

Contestants live in processes of their own and train in turn, block by block, as in supervised.py: see README.md and
resnet.md.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from contestants import BuildError, Process, alternate, apart, measured

STEPS = 5
"""Steps after which both sides' networks are compared."""

TOLERANCE = 1e-3
"""Largest relative difference of a loss among those steps that counts as agreement (float32, dozens of layers)."""

BUSY_SHARE = 0.05
"""Others' share of the CPUs from which on timings are not to be trusted."""


# What is built in a contestant's own process; each framework is imported there only. -----------------------


def _neoteny(norm: str):
    from resnet_sides import Neoteny

    return Neoteny(norm)


def _torch(norm: str, layout: str):
    from resnet_sides import Torch

    return Torch(norm, layout)


def _xla_convolutions():
    from resnet_sides import XlaConvolutions

    return XlaConvolutions()


def _torch_convolutions(layout: str):
    from resnet_sides import TorchConvolutions

    return TorchConvolutions(layout)


def _compared(norm: str, steps: int) -> dict[str, Any]:
    from resnet_sides import compared

    return compared(norm, steps)


# Measuring ----------------------------------------------------------------------------------------------


def run(norm: str, *, seconds: float, repeats: int) -> dict[str, Any]:
    """One comparison, neoteny first."""
    print(f"\nResNet-20, {norm} norm", flush=True)
    check = apart(_compared, norm, STEPS)
    passed = check["loss"] <= TOLERANCE
    print(
        f"  after {STEPS} steps from equal weights the loss differs by {check['loss']:.1e}, all parameters by "
        f"{check['parameters']:.1e} (PyTorch float32 from its float64: {check['rounding']:.1e}): "
        f"{'agrees' if passed else 'DISAGREES'}",
        flush=True,
    )
    offers: list[tuple] = [
        ("neoteny", _neoteny, norm),
        ("torch", _torch, norm, "contiguous"),
        ("torch, channels last", _torch, norm, "channels_last"),
        ("bare convolutions, XLA", _xla_convolutions),
        ("bare convolutions, torch", _torch_convolutions, "contiguous"),
        ("bare convolutions, torch, channels last", _torch_convolutions, "channels_last"),
    ]
    taking_part = []
    for name, build, *arguments in offers:
        try:
            taking_part.append(Process(name, build, *arguments))
        except BuildError as error:
            print(f"  {name} takes no part: {str(error).strip().splitlines()[-1]}")
    others = alternate(taking_part, seconds=seconds, repeats=repeats)
    for contestant in taking_part:
        contestant.close()
    result = {
        "norm": norm,
        "check": check | {"passed": passed},
        "others_cpu_share": float(np.median(others)),
        "contestants": {contestant.name: measured(contestant, taking_part[0]) for contestant in taking_part},
    }
    print(table(result), flush=True)
    return result


def table(result: dict[str, Any]) -> str:
    """One comparison as a Markdown table."""
    lines = [
        f"| {result['norm']} norm | ms a step (quartiles; least) | neoteny takes times as long (quartiles) |",
        "|---|---|---|",
    ]
    for name, entry in result["contestants"].items():
        ms, times = entry["milliseconds"], entry["times_reference"]
        lines.append(
            f"| {name} | {ms['median']:.1f} ({ms['q1']:.1f} to {ms['q3']:.1f}; {ms['min']:.1f}) "
            f"| {1 / times['median']:.2f} ({1 / times['q3']:.2f} to {1 / times['q1']:.2f}) |"
        )
    share = result["others_cpu_share"]
    trust = ": DO NOT TRUST THESE TIMES." if share > BUSY_SHARE else "."
    parts = "; ".join(
        f"{name.removeprefix('bare convolutions, ')}: "
        + ", ".join(f"{part} {1e3 * value:.1f}" for part, value in entry["detail"]["parts"].items())
        for name, entry in result["contestants"].items()
        if "parts" in entry["detail"]
    )
    notes = f"Others used {100 * share:.0f} % of the CPUs meanwhile{trust} Bare convolutions, least ms a step: {parts}."
    return "\n".join([*lines, "", notes])


def main() -> None:
    """Parse, measure, save; ends with an error if the two sides' steps differ."""
    parser = argparse.ArgumentParser(description="A training step of ResNet-20, neoteny and PyTorch side by side.")
    parser.add_argument("--norm", nargs="*", choices=("batch", "group"), default=["batch", "group"])
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a block (1.5)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count (7)")
    parser.add_argument("--out", type=Path, help="write everything to this JSON file")
    arguments = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores; batch 64, 32 x 32 x 3, SGD with momentum, float32")
    results = [run(norm, seconds=arguments.seconds, repeats=arguments.repeats) for norm in arguments.norm]
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    if not all(result["check"]["passed"] for result in results):
        raise SystemExit("neoteny's and PyTorch's steps differ")


if __name__ == "__main__":
    main()
