"""What is loss of plasticity, and what keeps a network able to learn when its targets keep changing?

Lyle, Zheng, Nikishin, Avila Pires, Pascanu and Dabney: Understanding plasticity in neural networks, ICML 2023
(arXiv:2303.01486). Plasticity is the ability to fit new targets, measured by a probe task on a copy of the network. Its
loss can come from the optimiser (case study 1: default Adam after an abrupt change of labels), or with a landscape that
gradient descent makes sharp and interfering (case study 2); no simple statistic explains it (case study 3), and some
design choices keep it.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from neoteny.lab.study import Study
from neoteny.studies.plasticity.agents import combined, falsification, interventions, width
from neoteny.studies.plasticity.claims import CLAIMS
from neoteny.studies.plasticity.figures import FIGURES, NAMES, TABLES
from neoteny.studies.plasticity.games import atari, games
from neoteny.studies.plasticity.labels import DEFAULT, TUNED, case1, remedies
from neoteny.studies.plasticity.runs import (
    AGENT_STRUCTURE,
    SETTING,
    SETTINGS,
    accuracy_by_task,
    at_end,
    by_task,
    case1_rows,
    last_third,
    mixed_fields,
    probed,
    setting_name,
    together,
    varied,
    why_unfit,
    width_sweep,
)
from neoteny.studies.plasticity.walk import walk

PRESETS = {
    "smoke": "a minute or two, nearly all of it compiling, to see that everything works; its numbers mean nothing",
    "demo": "labels only: 5,000 MNIST digits, width 128, 4 seeds: about three minutes on two CPU cores",
    "quick": (
        "reduced: 5,000 MNIST digits; label resets at width 512, 5 seeds; gradient descent against a walk, 10 seeds; "
        "DQN of width 128 with every treatment, 5 seeds: planned for an hour and a quarter on two CPU cores"
    ),
    "quick_full": "labels only, the paper's width of 1024, 20 tasks, 5 seeds: several hours on two CPU cores",
    "minatar": "five games of MinAtar for 400,000 frames with and without layer norm, 5 seeds: hours on two CPU cores",
    "paper": (
        "label resets at width 1024 (30 tasks of 3,000 steps); DQN on MNIST and CIFAR-10 with MLP, CNN, ResNet-18 and "
        "ViT; MinAtar for 5 million frames and 57 games of Atari for 200 million: for GPUs"
    ),
    "paper_long": "agents of a million updates, as in the paper's appendix B, for a GPU",
}


LOST = 2.0
"""A probe loss that says more than that nothing was learned: the targets vary by about 0.5."""


def summary(frame: pl.DataFrame) -> tuple[str, ...]:
    """What was measured, in a sentence for each Adam setting and for the agents, and what claims alone would hide."""
    return (*_told_of_labels(frame), *_told_of_agents(frame), *_told_of_widths(frame))


def _told_of_agents(frame: pl.DataFrame) -> list[str]:
    """How the rises compare, with what they say of the paper's abstract."""
    table = at_end(probed(frame, "interventions"))
    if table.is_empty() or mixed_fields(table, AGENT_STRUCTURE):
        return []
    told = []
    for setting, part in table.partition_by(*SETTING, as_dict=True, maintain_order=True).items():
        means = part.group_by("treatment", "output", maintain_order=True).agg(
            pl.col("final").mean(), pl.col("rise").mean()
        )
        ranked = [
            f"{NAMES[row['treatment'], row['output']]} {row['rise']:+.2f} (to {row['final']:.2f})"
            for row in means.sort("rise").iter_rows(named=True)
        ]
        told.append(f"Rise of the probe loss, {setting_name(setting)}, lowest first: {', '.join(ranked)}.")
    return told


def _told_of_widths(frame: pl.DataFrame) -> list[str]:
    """Which agents of the width sweep decide its means alone."""
    table = width_sweep(frame)
    lost = table.filter(pl.col("final") > LOST) if len(table) else table
    if lost.is_empty():
        return []
    where = lost.group_by("width", "target_period").len().sort("width", "target_period")
    agents = [f"{n} of width {width}, target copied every {period:,}" for width, period, n in where.iter_rows()]
    return [
        f"Width: {lost.height} of {table.height} agents end with a probe loss above {LOST:g}, that is, their values "
        f"have run away ({'; '.join(agents)}). Means over all target periods are theirs; by target period they stand "
        "beside UPL-14."
    ]


def _told_of_labels(frame: pl.DataFrame) -> list[str]:
    told, starts = [], {}
    if varied(case1_rows(frame)):
        return [f"Several settings of {', '.join(varied(case1_rows(frame)))}: the figures have a panel for each."]
    for setting, name in SETTINGS.items():
        if why_unfit(frame, setting) is not None:
            continue
        accuracy, dead = together(accuracy_by_task(frame, setting), by_task(frame, setting, "dead_units", "all"))
        first = starts[setting] = float(np.nanmean(accuracy[:, : accuracy.shape[1] // 3]))
        units = dead[:, -1][~np.isnan(dead[:, -1])]  # a diverged run is not probed
        share = f"{100 * float(units.mean()):.0f} % of units dead at the end" if len(units) else "diverged in every run"
        told.append(
            f"{name[0].upper()}{name[1:]}: {first:.0f} % of labels fitted in the first third of tasks, "
            f"{float(np.nanmean(last_third(accuracy))):.0f} % in the last, {share}."
        )
    if DEFAULT in starts and TUNED in starts and starts[TUNED] < 0.5 * starts[DEFAULT]:
        told.append(
            "Mind the level: tuned Adam is stable here, but fits far fewer labels than default Adam does at first. "
            "With eps_root = 1e-3 inside the root, updates are small once gradients are, so a budget this short is not "
            "enough for it."
        )
    return told


STUDY = Study(
    name="plasticity",
    title="Understanding plasticity",
    paper="Lyle, Zheng, Nikishin, Avila Pires, Pascanu, Dabney: Understanding plasticity in neural networks, ICML 2023",
    paper_url="https://arxiv.org/abs/2303.01486",
    question=(
        "When targets keep changing, does a network stay able to fit new ones? If not, is Adam to blame, or the "
        "loss landscape that gradient descent leads to, and which design choices help?"
    ),
    experiments=(case1, remedies, walk, interventions, combined, width, falsification, games, atari),
    claims=CLAIMS,
    figures=FIGURES,
    presets=PRESETS,
    tables=TABLES,
    notes=(
        "The paper gives neither the batch size nor the number of steps between label resets; those here are choices.",
        "A diverged run counts with its last finite network. Where the probe task is what counts, it counts with the "
        "variance of the targets: nothing learned. UPL-3, 5, 6, 7 and 15 rest on probes, of which a diverged run has "
        "none: it is left out there, and n says how many are left.",
        "Interventions at copies of the target network leave the target as it is; the paper does not say.",
    ),
    summary=summary,
)
