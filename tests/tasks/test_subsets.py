"""Chosen classes and rows are the ones asked for, with labels that count from 0."""

from __future__ import annotations

import numpy as np
import pytest

from neoteny.errors import UsageError
from neoteny.tasks import as_shape, class_incremental, from_arrays, subset, teacher
from neoteny.tasks.subsets import class_numbers

LABELS = np.arange(60) % 4
DATA = from_arrays(
    np.arange(60, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2),
    LABELS,
    name="marked",
    splits={"train": np.arange(40), "test": np.arange(40, 60)},
    dev=0,
    class_names=("a", "b", "c", "d"),
)


def marks(data, split):
    return data.inputs[data.splits[split], 0, 0, 0].tolist()


def test_classes_are_renumbered_in_the_order_given_and_rows_stay_in_theirs():
    part = subset(DATA, classes=(3, 1), train=6)
    assert part.classes == 2
    assert part.class_names == ("d", "b")
    assert marks(part, "train") == [1, 3, 5, 7, 9, 11]
    assert part.targets[part.splits["train"]].tolist() == [1, 0, 1, 0, 1, 0]
    assert marks(part, "test") == [i for i in range(40, 60) if i % 2]
    assert len(part.inputs) == 6 + 10
    assert part.name != subset(DATA, classes=(3, 1), train=8).name
    assert class_numbers(DATA, ("d", "b")) == (3, 1)


def test_fewer_rows_are_the_first_of_more():
    few, many = (set(marks(subset(DATA, train=count), "train")) for count in (8, 20))
    assert few < many


def test_tasks_with_labels_of_their_own_have_the_rows_of_tasks_without():
    kept, local = (list(class_incremental(DATA, tasks=2, local=local)) for local in (False, True))
    for index in range(2):
        rows = kept[index].rows("train")
        assert marks(local[index].data, "train") == DATA.inputs[rows, 0, 0, 0].tolist()
        own = local[index].data.targets[local[index].rows("train")]
        assert (own == DATA.targets[rows] - 2 * index).all()
        assert local[index].data.classes == 2


def test_images_are_padded_averaged_and_given_channels():
    assert as_shape(DATA, (2, 2, 1)) is DATA
    padded = as_shape(DATA, (4, 4, 3)).inputs
    assert padded.shape == (60, 4, 4, 3)
    assert (padded[:, 1:3, 1:3] == DATA.inputs).all()
    assert padded[:, 0].sum() == 0
    halved = as_shape(DATA, (1, 1, 1)).inputs
    np.testing.assert_allclose(halved[:, 0, 0, 0], np.arange(60) / 255, rtol=1e-6)


def test_the_teachers_classes_all_occur_and_repeat():
    data = teacher(train=400, test=100)
    assert np.unique(data.targets).tolist() == list(range(10))
    assert np.bincount(data.targets).max() < 150
    teacher.cache_clear()
    assert teacher(train=400, test=100).digest == data.digest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": 41}, "cannot be shared evenly"),
        ({"train": 80}, "class 0 has 10"),
        ({"classes": (0, 4)}, "different numbers from 0 to 3"),
        ({"classes": (1, 1)}, "different numbers"),
    ],
)
def test_what_cannot_be_had_is_said(given, message):
    with pytest.raises(UsageError, match=message):
        subset(DATA, **given)
    with pytest.raises(UsageError, match="no class 'e'"):
        class_numbers(DATA, ("e",))
