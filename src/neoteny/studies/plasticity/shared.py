"""What agents and walks have in common: the values refused, the images shown, and how experience is gathered."""

from __future__ import annotations

from functools import cache
from typing import Any

from neoteny.learners.values import Scalar
from neoteny.studies.plasticity.labels import images
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.experience import DeviceExperience, LinearEpsilon
from neoteny.tasks.images import average_pool

DISCOUNT = 0.99
"""Of the classification MDPs; the paper does not give it."""

TARGET_PERIOD = 1_000
"""Updates between copies of the target network (section 5.1 of the paper; its appendix has other numbers)."""

SQUARED = Scalar(bound=None, scale=1.0)
"""The paper's TD loss: the whole squared error, without a bound (section 2)."""


def check_positive(config: Any, *names: str) -> None:
    """ValueError naming a field that is not positive, or a seed that is negative."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, not {getattr(config, name)}")
    if config.seed < 0:
        raise ValueError(f"seed must not be negative, not {config.seed}")


def check_probability(config: Any, *names: str) -> None:
    """ValueError naming a field that is no probability."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} is a probability, not {getattr(config, name)}")


@cache
def pooled(name: str, side: int) -> Arrays:
    """All images there are, with squares of side x side pixels averaged."""
    return images(name) if side == 1 else average_pool(images(name), side)


def source(config: Any) -> DeviceExperience:
    """One step an update, epsilon-greedy; the first steps are random and fill the replay.

    A replay that still fills would show the first probe fewer images than the later ones, and fewer are easier to fit.
    """
    return DeviceExperience(
        batch_size=config.batch,
        learning_starts=config.capacity,
        capacity=config.capacity,
        discount=DISCOUNT,
        epsilon=LinearEpsilon(config.epsilon, config.epsilon, 1),
    )
