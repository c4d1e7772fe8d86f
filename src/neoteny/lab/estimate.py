"""What a plan will do and cost, found by tracing: nothing is compiled, computed or written."""

from __future__ import annotations

from collections import Counter

from neoteny.lab.execute import make_runner
from neoteny.lab.fingerprint import devices
from neoteny.lab.plan import Plan
from neoteny.lab.study import Study
from neoteny.lab.throughput import recall
from neoteny.report.formats import rough_duration


def describe(study: Study, plan: Plan) -> str:
    """The plan as text: runs, packs, events, bytes, FLOPs, and the time if this machine's speed is known."""
    devices()
    lines = [f"{study.name}, preset {plan.request.preset}: {len(plan.runs)} runs in {len(plan.packs)} packs"]
    total_flops, total_seconds, known = 0.0, 0.0, True
    for pack in plan.packs:
        runner = make_runner(study, plan, pack)
        flops = runner.training_flops() * len(pack.runs)
        kinds = Counter(type(event).__name__ for event in runner.events)
        events = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        rate = recall(study.name, pack.experiment)
        known = known and rate is not None
        total_flops += flops
        total_seconds += flops / rate if rate else 0.0
        time = f"about {rough_duration(flops / rate)}" if rate else "time unknown until it ran here once"
        lines.append(
            f"  {pack.name}  {pack.experiment:<12} {len(pack.runs)} runs, "
            f"{runner.plan().updates:,} updates each; state {runner.state_bytes() / 1e6:,.1f} MB; "
            f"{flops / 1e12:,.3f} TFLOP of training; {time}"
        )
        branches = f", in {runner.branches} branches and outside" if runner.branches else ""
        lines.append(f"      {len(runner.events)} events: {events}{branches}")
    time = f", about {rough_duration(total_seconds)}" if known else ""
    lines.append(f"in all {total_flops / 1e12:,.3f} TFLOP of training{time}")
    return "\n".join(lines)
