"""Every format read back from files the tests write, and every damaged or dangerous file refused."""

import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from neoteny.errors import UsageError
from neoteny.tasks import catalogue, formats, images, places


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty NEOTENY_DATA."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv(places.VARIABLE, str(folder))
    return folder


def colours(n, shape=(32, 32, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def refused(action, *words):
    with pytest.raises(UsageError) as error:
        action()
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def in_order(data, split):
    """The split's inputs and labels in file order: loaders shuffle the rows."""
    rows = np.sort(data.splits[split])
    return data.inputs[rows], data.targets[rows]


def assert_split(data, split, inputs, labels):
    found_inputs, found_labels = in_order(data, split)
    np.testing.assert_array_equal(found_inputs, inputs)
    np.testing.assert_array_equal(found_labels, labels)
    assert not np.array_equal(data.splits[split], np.sort(data.splits[split])), "shuffled"


# --- npz ------------------------------------------------------------------------------------------------


def test_npz_round_trip(tmp_path):
    x, y = colours(30), np.arange(30) % 3
    path = tmp_path / "mine.npz"
    np.savez_compressed(
        path, x_train=x[:20], y_train=y[:20], x_valid=x[20:25], y_valid=y[20:25], x_test=x[25:], y_test=y[25:,
        None], classes=np.array(["ant", "bee", "cow"]),
    )  # fmt: skip
    data = images.npz(path)
    assert_split(data, "train", x[:20], y[:20])
    assert_split(data, "dev", x[20:25], y[20:25])
    assert_split(data, "test", x[25:], y[25:])
    assert data.class_names == ("ant", "bee", "cow")
    assert (data.name, data.classes) == ("mine", 3)
    assert images.npz(str(path)) is data


def test_npz_without_other_splits_is_cut(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=colours(40), y_train=np.arange(40) % 4)
    data = images.npz(tmp_path / "a.npz", dev=4, test=0.2)
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 28, "dev": 4, "test": 8}
    assert np.bincount(data.targets[data.splits["test"]]).tolist() == [2, 2, 2, 2]


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=colours(10), y_train=np.arange(10) % 2)
    first = images.npz(path)
    np.savez(path, x_train=colours(10, seed=1), y_train=np.arange(10) % 2)
    os.utime(path, ns=(0, 0))
    assert images.npz(path).digest != first.digest


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros(3)}, ("no arrays x_train and y_train", "it holds images")),
        ({"x_train": colours(4)}, ("has x_train but no y_train",)),
        ({"x_train": colours(4), "y_train": np.array([0, 1, None, 0])}, ("allow_pickle=False",)),
        ({"x_train": colours(4), "y_train": np.arange(3)}, ("do not belong together",)),
        (
            {
                "x_train": colours(4),
                "y_train": np.arange(4),
                "x_test": colours(4, (8, 8, 3)),
                "y_test": np.arange(4),
            },
            ("test inputs are uint8 (8, 8, 3)",),
        ),
        (
            {
                "x_train": colours(4),
                "y_train": np.arange(4),
                "x_test": colours(4) / 255,
                "y_test": np.arange(4),
            },
            ("test inputs are float64",),
        ),
        (
            {"x_train": colours(4), "y_train": np.arange(4), "x_test": colours(4), "y_test": np.eye(4)},
            ("labels of different type",),
        ),
        ({"x_train": colours(4), "y_train": np.arange(4.0)}, ("whole numbers",)),
        (
            {"x_train": colours(4), "y_train": np.arange(4), "classes": np.array(["a", "b"])},
            ("label 3 is out of range",),
        ),
    ],
)
def test_npz_mistakes(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(lambda: images.npz(tmp_path / "a.npz"), *words)


def test_npz_damage(tmp_path):
    path = tmp_path / "a.npz"
    refused(lambda: images.npz(path), "no such file")
    path.write_bytes(b"not a zip")
    refused(lambda: images.npz(path), "not a NumPy .npz archive")
    np.savez_compressed(path, x_train=colours(20), y_train=np.arange(20) % 2)
    whole = bytearray(path.read_bytes())
    whole[2000:2100] = bytes(100)
    path.write_bytes(whole)
    refused(lambda: images.npz(path), "cannot be read")


# --- idx ------------------------------------------------------------------------------------------------


def idx_bytes(array):
    kinds = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
    header = struct.pack(f">4B{array.ndim}I", 0, 0, kinds[array.dtype.name], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_idx(folder: Path, train=30, test=10, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, part, n in (("train", "train", train), ("test", "t10k", test)):
        x, y = colours(n, (28, 28), seed=n), (np.arange(n) % 10).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y)):
            raw = idx_bytes(array)
            (folder / (name + ".gz" if zipped else name)).write_bytes(gzip.compress(raw) if zipped else raw)
        written[split] = (x[..., None], y)
    return written


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_idx_types(tmp_path, dtype):
    array = np.arange(-60, 60).reshape(4, 5, 6).astype(dtype)
    (tmp_path / "a").write_bytes(idx_bytes(array))
    read = formats.read_idx(tmp_path / "a")
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("loader", "folder", "zipped"),
    [
        (images.mnist, "mnist", False),
        (images.mnist, "MNIST/raw", True),
        (images.fashion_mnist, "fashion_mnist", True),
        (images.fashion_mnist, "FashionMNIST/raw", True),
    ],
)
def test_idx_folder(root, loader, folder, zipped):
    written = write_idx(root / folder, zipped=zipped)
    data = loader(dev=0)
    for split, (x, y) in written.items():
        assert_split(data, split, x, y)
    assert str(root / folder) in data.source
    assert loader(dev=0) is data
    assert len(loader(dev=10).splits["dev"]) == 10


def test_idx_with_a_dot(tmp_path):
    write_idx(tmp_path, zipped=False)
    for file in list(tmp_path.iterdir()):
        file.rename(tmp_path / file.name.replace("-idx", ".idx"))
    assert formats.has_idx(tmp_path)
    assert len(formats.read_idx_folder(tmp_path).splits["test"][1]) == 10


def test_idx_damage(tmp_path):
    written = idx_bytes(colours(5, (4, 4)))
    file = tmp_path / "a"
    for content, words in (
        (written[:-1], ("79 bytes", "says 80")),
        (written + b"x", ("81 bytes",)),
        (b"\0\0\7\1" + written[4:], ("not an idx file",)),
        (b"", ("not an idx file",)),
        (written[:6], ("not an idx file",)),
        (gzip.compress(written)[:-20], ("cannot be read",)),
    ):
        file.write_bytes(content)
        refused(lambda: formats.read_idx(file), str(file), *words)
    refused(lambda: formats.read_idx(tmp_path / "none"), "no such file")
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    refused(lambda: formats.read_idx_folder(tmp_path), "t10k-labels-idx1-ubyte", "missing")


# --- CIFAR's archives -----------------------------------------------------------------------------------


def python2_pickle(items):
    """Protocol 2 as Python 2 wrote the CIFAR batches: byte strings, arrays by numpy.core.multiarray."""

    def text(value):
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    def array(value):
        shape = b"(" + b"".join(number(n) for n in value.shape) + b"t"
        dtype = (
            b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR("
            + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
        )  # fmt: skip
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") +
            b"tR(" + number(1) + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"
        )  # fmt: skip

    def any_value(value):
        if isinstance(value, np.ndarray):
            return array(value)
        if isinstance(value, bytes):
            return text(value)
        return b"](" + b"".join(number(v) if isinstance(v, int) else text(v) for v in value) + b"e"

    return b"\x80\x02}(" + b"".join(text(key) + any_value(value) for key, value in items.items()) + b"u."


def python3_pickle(items):
    return pickle.dumps({key.decode(): value for key, value in items.items()}, protocol=2)


def rows_of(x):
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)


def cifar10_parts(n=4):
    x = colours(6 * n)
    y = [int(label) for label in np.random.default_rng(1).integers(0, 10, 6 * n)]
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    parts = {name: (x[i * n : (i + 1) * n], y[i * n : (i + 1) * n]) for i, name in enumerate(names)}
    return parts, (x[: 5 * n], y[: 5 * n]), (x[5 * n :], y[5 * n :])


def cifar10_python_files(dump=python2_pickle):
    parts, train, test = cifar10_parts()
    files = {name: dump({b"data": rows_of(x), b"labels": y}) for name, (x, y) in parts.items()}
    names = [name.encode() for name in places.CIFAR10.class_names]
    return files | {"batches.meta": dump({b"label_names": names})}, train, test


def write_tar(path, folder, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
def test_cifar10_python_archive(root, dump):
    files, train, test = cifar10_python_files(dump)
    write_tar(root / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    data = images.cifar10(dev=0)
    assert_split(data, "train", *train)
    assert_split(data, "test", *test)
    assert data.class_names == places.CIFAR10.class_names
    assert data.classes == 10


def test_cifar10_unpacked(root):
    files, train, _ = cifar10_python_files()
    (root / "cifar-10-batches-py").mkdir()
    for name, content in files.items():
        (root / "cifar-10-batches-py" / name).write_bytes(content)
    assert_split(images.cifar10(dev=0), "train", *train)
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    refused(lambda: images.cifar10(dev=0), "no data_batch_3 inside")


def test_cifar10_binary(root):
    parts, train, test = cifar10_parts()
    files = {
        f"{name}.bin": b"".join(bytes([label]) + row.tobytes() for label, row in zip(y, rows_of(x), strict=True))
        for name, (x, y) in parts.items()
    }
    files["batches.meta.txt"] = ("\n".join(places.CIFAR10.class_names) + "\n\n").encode()
    write_tar(root / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files)
    data = images.cifar10(dev=0)
    assert_split(data, "train", *train)
    assert_split(data, "test", *test)
    assert data.class_names == places.CIFAR10.class_names
    files["data_batch_2.bin"] += b"x"
    write_tar(root / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files)
    refused(lambda: images.cifar10(dev=0), "data_batch_2.bin", "multiple of 3073")


def test_cifar100_python_and_binary_take_the_fine_labels(root):
    x = colours(30)
    fine, coarse = [i * 3 % 100 for i in range(30)], [i % 20 for i in range(30)]
    names = [name.encode() for name in places.CIFAR100.class_names]
    pickles = {
        name: python2_pickle({b"data": rows_of(x[a:b]), b"fine_labels": fine[a:b], b"coarse_labels": coarse[a:b]})
        for name, a, b in (("train", 0, 20), ("test", 20, 30))
    }
    pickles["meta"] = python2_pickle({b"fine_label_names": names})
    write_tar(root / "cifar-100-python.tar.gz", "cifar-100-python", pickles)
    first = images.cifar100(dev=0)
    assert_split(first, "train", x[:20], fine[:20])
    assert_split(first, "test", x[20:], fine[20:])
    assert (first.classes, first.class_names) == (100, places.CIFAR100.class_names)
    (root / "cifar-100-python.tar.gz").unlink()
    binaries = {
        name: b"".join(
            bytes([c, f]) + row.tobytes() for c, f, row in zip(coarse[s], fine[s], rows_of(x[s]), strict=True)
        )
        for name, s in (("train.bin", slice(20)), ("test.bin", slice(20, 30)))
    }
    binaries["fine_label_names.txt"] = b"\n".join(names) + b"\n"
    write_tar(root / "cifar-100-binary.tar.gz", "cifar-100-binary", binaries)
    second = images.cifar100(dev=0)
    assert second is not first
    assert second.digest == first.digest
    assert second.class_names == first.class_names


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("wrap", "word"),
    [
        (lambda target: Evil(os.mkdir, (target,)), "mkdir"),
        (lambda target: {"data": [Evil(eval, (f"__import__('os').mkdir({target!r})",))]}, ".eval"),
        (lambda target: np.array([Evil(Path.touch, (Path(target),))], dtype=object), "refuses"),
        (lambda target: Evil(Evil, (os.mkdir, (target,))), "Evil"),
    ],
)
def test_a_pickle_that_runs_code_is_refused(root, tmp_path, wrap, word, protocol):
    target = tmp_path / "pwned"
    files, _, _ = cifar10_python_files()
    files["data_batch_4"] = pickle.dumps(wrap(str(target)), protocol=protocol)
    write_tar(root / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    refused(lambda: images.cifar10(dev=0), "data_batch_4", "refuses to load", word)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("not one of CIFAR's",)),
        (b"\x80\x02}(", ("not one of CIFAR's",)),
        (b"hello world", ("not one of CIFAR's",)),
        (pickle.dumps([1, 2]), ("holds a list",)),
        (pickle.dumps({"data": 1}), ("'labels'",)),
        (pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [1, 2]}), ("uint8 (2, 5)",)),
        (b"\x80\x02c_codecs\nencode\n(X\1\0\0\0aX\5\0\0\0rot13tR.", ("codec 'rot13'",)),
        (python2_pickle({b"data": colours(2, (3072,)), b"labels": [1, 10]}), ("label 10 is out of range",)),
        (python2_pickle({b"data": colours(2, (3072,)), b"labels": [1]}), ("do not belong together",)),
    ],
)
def test_foreign_pickles(root, content, words):
    files, _, _ = cifar10_python_files()
    files["test_batch"] = content
    write_tar(root / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    refused(lambda: images.cifar10(dev=0), *words)


def test_damaged_tar(root):
    (root / "cifar-10-python.tar.gz").write_bytes(b"nothing")
    refused(lambda: images.cifar10(), "cifar-10-python.tar.gz", "cannot be read")


# --- Image folders --------------------------------------------------------------------------------------


def save(path: Path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def test_image_folder_round_trip(tmp_path):
    x = colours(12, (6, 7, 3))
    for i in range(8):
        save(tmp_path / "train" / ("bee" if i < 4 else "ant") / "deep" / f"{i}.png", x[i])
    for i in range(8, 10):
        save(tmp_path / "val" / "ant" / f"{i}.PNG", x[i])
    for i in range(10, 12):
        save(tmp_path / "test" / "bee" / f"{i}.bmp", x[i])
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    data = images.image_folder(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert_split(data, "train", x[[4, 5, 6, 7, 0, 1, 2, 3]], [0] * 4 + [1] * 4)
    assert in_order(data, "dev")[1].tolist() == [0, 0]
    np.testing.assert_array_equal(in_order(data, "test")[0], x[10:])
    assert in_order(data, "test")[1].tolist() == [1, 1]
    assert images.image_folder(str(tmp_path)) is data
    save(tmp_path / "train" / "bee" / "new.png", x[0])
    assert len(images.image_folder(tmp_path).inputs) == 13


def test_cinic10_is_read_from_the_folders_of_its_archive(root):
    names = places.CINIC10.class_names
    for split, count in (("train", 2), ("valid", 1), ("test", 1)):
        for label, name in enumerate(names):
            folder = root / "CINIC-10" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                shade = 20 * label + 5 * number + len(split)
                mode, colour = ("L", shade) if label == 3 else ("RGB", (shade, 0, 0))
                Image.new(mode, (32, 32), colour).save(folder / f"{number}.png")
    data = images.cinic10()
    assert data.class_names == names
    assert data.input_shape == (32, 32, 3)
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 20, "dev": 10, "test": 10}
    for split, folder in (("train", "train"), ("dev", "valid"), ("test", "test")):
        rows = data.splits[split]
        reds = data.inputs[rows][:, 0, 0, 0].astype(int) - len(folder)
        assert (reds // 20 == data.targets[rows]).all(), split
    assert catalogue.load("cinic10") is data
    assert "image folder" in catalogue.find("cinic10").where


def test_image_folder_without_splits_counts_numbers(tmp_path):
    for name in ("2", "10", "1"):
        for i in range(5):
            save(tmp_path / name / f"{i}.png", np.full((3, 3, 1), int(name), np.uint8))
    data = images.image_folder(tmp_path, dev=0.2, test=0.2)
    assert data.class_names == ("1", "2", "10")
    assert data.inputs.shape == (15, 3, 3, 1)
    assert [int(data.inputs[row].max()) for row in (0, 5, 10)] == [1, 2, 10]
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 9, "dev": 3, "test": 3}


def test_modes_and_sizes(tmp_path):
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for name, image in {
        "a": Image.new("L", (4, 4), 100),
        "b": red,
        "c": red.convert("P"),
        "d": red.convert("RGBA"),
        "e": Image.new("1", (4, 4), 1),
    }.items():
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "0.png")
    data = images.image_folder(tmp_path, dev=0, test=0)
    assert [data.inputs[i, 2, 1].tolist() for i in range(5)] == [
        [100] * 3, [255, 0, 0], [255, 0, 0], [255, 0, 0], [255] * 3,
    ]  # fmt: skip
    Image.new("L", (8, 2), 7).save(tmp_path / "a" / "1.png")
    refused(lambda: images.image_folder(tmp_path), "2 sizes, from 2x8 to 4x4", "resize=")
    resized = images.image_folder(tmp_path, resize=(3, 5), dev=0, test=0)
    assert resized.inputs.shape == (6, 3, 5, 3)
    assert resized.inputs[1].max() == 7
    assert images.image_folder(tmp_path, resize=2, dev=0, test=0).inputs.shape == (6, 2, 2, 3)
    refused(lambda: images.image_folder(tmp_path, resize=0), "resize=0")


def test_camera_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    (tmp_path / "a").mkdir()
    Image.new("L", (2, 6)).save(tmp_path / "a" / "0.png", exif=exif)
    assert images.image_folder(tmp_path, dev=0, test=0).inputs.shape == (1, 2, 6, 1)


def test_image_folder_mistakes(tmp_path, monkeypatch):
    refused(lambda: images.image_folder(tmp_path / "none"), "no such folder")
    refused(lambda: images.image_folder(tmp_path), "no class folders")
    save(tmp_path / "train" / "a" / "0.png", colours(1)[0])
    (tmp_path / "train" / "b").mkdir()
    refused(lambda: images.image_folder(tmp_path), str(tmp_path / "train" / "b"), "no image files")
    save(tmp_path / "train" / "b" / "0.png", colours(1)[0])
    save(tmp_path / "test" / "c" / "0.png", colours(1)[0])
    refused(lambda: images.image_folder(tmp_path), "class 'c'", "training classes")
    (tmp_path / "test" / "c").rename(tmp_path / "test" / "a")
    good = (tmp_path / "test" / "a" / "0.png").read_bytes()
    bad = tmp_path / "train" / "b" / "1.jpg"
    for content in (b"", b"GIF89a", good[:200], good[:60] + bytes(200)):
        bad.write_bytes(content)
        refused(lambda: images.image_folder(tmp_path), str(bad), "not a readable image")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "train" / "b" / "1.png")
    bad.unlink()
    refused(lambda: images.image_folder(tmp_path), "1.png", "not 8 bits")
    (tmp_path / "train" / "b" / "1.png").unlink()
    (tmp_path / "test" / "a" / "0.png").unlink()
    refused(lambda: images.image_folder(tmp_path), "test split holds no image")
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(lambda: images.image_folder(tmp_path), "pillow", "pip install 'neoteny[vision]'")


# --- Parquet --------------------------------------------------------------------------------------------


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def hub_table(x, labels, names=None, image="image", more=None):
    """An Arrow table as `datasets` writes it; names: label column -> class names."""
    columns = {image: pa.array([{"bytes": png(p), "path": f"{i}.png"} for i, p in enumerate(x)])}
    columns |= {name: pa.array(list(map(int, values))) for name, values in labels.items()} | (more or {})
    table = pa.table(columns)
    if names is None:
        return table
    features = {image: {"_type": "Image"}}
    features |= {name: {"names": list(each), "_type": "ClassLabel"} for name, each in names.items()}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path: Path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def test_parquet_in_the_hubs_layout(tmp_path):
    x, y = colours(20, (5, 6, 3)), np.arange(20) % 3
    names = {"label": ["ant", "bee", "cow"]}
    for i in range(2):
        rows = slice(6 * i, 6 * i + 6)
        write(tmp_path / f"data/train-0000{i}-of-00002.parquet", hub_table(x[rows], {"label": y[rows]}, names))
    write(tmp_path / "data/validation-00000-of-00001.parquet", hub_table(x[12:16], {"label": y[12:16]}, names))
    write(tmp_path / "data/test-00000-of-00001-0f3a.parquet", hub_table(x[16:], {"label": y[16:]}, names))
    write(tmp_path / "data/extra-00000-of-00009.parquet", hub_table(x[:1], {"label": y[:1]}, names))
    data = images.parquet(tmp_path)
    assert_split(data, "train", x[:12], y[:12])
    assert_split(data, "dev", x[12:16], y[12:16])
    assert_split(data, "test", x[16:], y[16:])
    assert data.class_names == ("ant", "bee", "cow")
    assert images.parquet(str(tmp_path)) is data
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    refused(lambda: images.parquet(tmp_path), "1 train files where their names say 2")


def test_parquet_in_the_converted_layout_and_single_files(tmp_path):
    x, y = colours(12, (4, 4, 1)), np.arange(12) % 2
    write(tmp_path / "default/train/0000.parquet", hub_table(x[:8], {"label": y[:8]}))
    write(tmp_path / "default/test/0000.parquet", hub_table(x[8:], {"label": y[8:]}))
    data = images.parquet(tmp_path)
    np.testing.assert_array_equal(in_order(data, "test")[0], x[8:])
    assert data.inputs.shape == (12, 4, 4, 1)
    write(tmp_path / "pets.parquet", hub_table(x, {"label": y}))
    single = images.parquet(tmp_path / "pets.parquet", dev=0, test=0)
    assert_split(single, "train", x, y)
    assert single.name == "pets"


def test_parquet_of_bare_bytes(tmp_path):
    x = colours(6, (4, 4, 3))
    table = pa.table(
        {"img": pa.array([png(p) for p in x], pa.large_binary()), "label": pa.array([0, 1] * 3, pa.uint8())}
    )
    write(tmp_path / "a.parquet", table)
    assert_split(images.parquet(tmp_path / "a.parquet", dev=0, test=0), "train", x, [0, 1] * 3)


def test_parquet_columns_are_chosen_or_asked_for(tmp_path):
    x = colours(6, (4, 4, 3))
    labels = {"fine_label": [0, 1, 2] * 2, "coarse_label": [0, 1] * 3}
    more = {"height": pa.array([4] * 6), "thumbnail": pa.array([png(p) for p in x[::-1]])}
    names = {"fine_label": "abc", "coarse_label": "de"}
    path = tmp_path / "a.parquet"
    write(path, hub_table(x, labels, names, more=more))
    refused(lambda: images.parquet(path), "several columns could be the label", "fine_label, coarse_label")
    fine = images.parquet(path, label="fine_label", dev=0, test=0)
    assert fine.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(in_order(fine, "train")[0], x)
    assert images.parquet(path, label="coarse_label").class_names == ("d", "e")
    other = images.parquet(path, label="coarse_label", image="thumbnail", dev=0, test=0)
    np.testing.assert_array_equal(in_order(other, "train")[0], x[::-1])
    refused(lambda: images.parquet(path, label="nope"), "no column 'nope'", "coarse_label")
    refused(lambda: images.parquet(path, label="image"), "'image' is struct", "label=NAME")
    refused(lambda: images.parquet(path, label="fine_label", image="height"), "'height' is int64")
    write(path, hub_table(x, {"label": [0, 1] * 3}, more=more))  # no metadata: the usual names decide
    assert_split(images.parquet(path, dev=0, test=0), "train", x, [0, 1] * 3)
    write(path, pa.table({"text": ["a"], "label": [0]}))
    refused(lambda: images.parquet(path), "no column can be the image", "text, label")


def test_parquet_resize(tmp_path):
    x = np.full((4, 8, 8, 3), 9, np.uint8)
    write(tmp_path / "a.parquet", hub_table(x, {"label": [0, 1] * 2}))
    assert images.parquet(tmp_path / "a.parquet", resize=4).inputs.shape == (4, 4, 4, 3)


def test_parquet_mistakes(tmp_path):
    x = colours(4, (4, 4, 3))
    refused(lambda: images.parquet(tmp_path / "none"), "no such file or folder")
    refused(lambda: images.parquet(tmp_path), "no train*.parquet")
    file = tmp_path / "train.parquet"
    file.write_bytes(b"PAR1 but not really PAR1")
    refused(lambda: images.parquet(tmp_path), str(file), "cannot be read")
    table = hub_table(x, {"label": [0, 1, 0, 1]})
    write(file, table.set_column(1, "label", pa.array([0, None, 0, 1])))
    refused(lambda: images.parquet(tmp_path), "empty labels")
    write(file, table.set_column(0, "image", pa.array([{"bytes": b"no", "path": "x.png"}] * 4)))
    refused(lambda: images.parquet(tmp_path), "train row 0 (x.png)", "not a readable image")
    write(
        file,
        table.set_column(0, "image", pa.array([{"bytes": None, "path": "x.png"}] * 4, table.schema[0].type)),
    )
    refused(lambda: images.parquet(tmp_path), "train row 0", "no image bytes")
    write(file, hub_table(x, {"label": [0, 1, -1, 1]}, {"label": ["a", "b"]}))
    refused(lambda: images.parquet(tmp_path), "label -1 is out of range")
    write(tmp_path / "other" / "train.parquet", table)
    refused(lambda: images.parquet(tmp_path), "one configuration's folder")
    (tmp_path / "other" / "train.parquet").unlink()
    file.unlink()
    write(tmp_path / "test.parquet", table)
    refused(lambda: images.parquet(tmp_path), "no train*.parquet")
    assert len(images.parquet(tmp_path / "test.parquet").inputs) == 4, "a single file is all there is"


# --- The Hugging Face hub -------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """`datasets` with its cache in a temporary folder and no way to the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def test_hub_loader_and_parquet_agree_on_what_datasets_writes(tmp_path, offline):
    x, y = colours(12, (5, 5, 3)), np.arange(12) % 2
    features = offline.Features({"img": offline.Image(), "label": offline.ClassLabel(names=["ant", "bee"])})
    for split, rows in (("train", slice(8)), ("validation", slice(8, 10)), ("test", slice(10, 12))):
        part = offline.Dataset.from_dict(
            {"img": [Image.fromarray(p) for p in x[rows]], "label": y[rows].tolist()}, features=features
        )
        (tmp_path / "pets" / "data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(tmp_path / "pets" / "data" / f"{split}-00000-of-00001.parquet")
    direct = images.parquet(tmp_path / "pets")
    loaded = images.hub(str(tmp_path / "pets"))
    assert_split(loaded, "train", x[:8], y[:8])
    assert {name: len(rows) for name, rows in loaded.splits.items()} == {"train": 8, "dev": 2, "test": 2}
    assert loaded.digest == direct.digest
    assert loaded.class_names == direct.class_names == ("ant", "bee")
    assert images.hub(str(tmp_path / "pets"), label="label").digest == direct.digest
    refused(lambda: images.hub(str(tmp_path / "pets"), "nope"), "nope")


def test_hub_loader_follows_files_that_datasets_found(tmp_path, offline):
    x = colours(8, (5, 5, 3))
    for i in range(8):
        save(tmp_path / "pets" / "train" / "ab"[i % 2] / f"{i}.png", x[i])
    data = images.hub(str(tmp_path / "pets"), dev=0, test=0)
    assert data.class_names == ("a", "b")
    assert data.digest == images.image_folder(tmp_path / "pets", dev=0, test=0).digest


def test_hub_without_train_split(tmp_path, offline):
    write(tmp_path / "pets" / "test.parquet", hub_table(colours(4, (4, 4, 3)), {"label": [0, 1] * 2}))
    refused(lambda: images.hub(str(tmp_path / "pets")), "no split called train", "test")


def test_hub_out_of_reach(root, offline):
    refused(lambda: images.hub("nobody/nothing"), "nobody/nothing", "hub did not give it", "parquet(path)")
    refused(lambda: images.cifar10(), "cifar10: not in", str(root), "uoft-cs/cifar10", "set NEOTENY_DATA")


def test_hub_without_the_extra(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(lambda: images.hub("a/b"), "datasets", "pip install 'neoteny[vision]'")
    refused(lambda: images.mnist(), "mnist: not in", "pip install 'neoteny[vision]'")
