"""torchvision's data sets from small files in the published formats; nothing here reaches the network."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from artsy_ext.data import load_source

MNISTS = {"mnist": torchvision.datasets.MNIST, "fashionmnist": torchvision.datasets.FashionMNIST}
CIFARS = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}

TRAIN, TEST = 20, 10


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def grey(count: int, part: int) -> np.ndarray:
    """Images [count, 28, 28] whose first pixel is their index, the next one the part."""
    pixels = np.zeros((count, 28, 28), np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = np.arange(count), part
    return pixels


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def mnist_files() -> dict[str, bytes]:
    """The four files by name."""
    files = {}
    for part, (name, count) in enumerate((("train", TRAIN), ("t10k", TEST))):
        files[f"{name}-images-idx3-ubyte.gz"] = gzip.compress(idx(grey(count, part)), mtime=0)
        files[f"{name}-labels-idx1-ubyte.gz"] = gzip.compress(idx((np.arange(count) % 10).astype(np.uint8)), mtime=0)
    return files


def cifar_files(classes: int) -> dict[str, bytes]:
    """The files of a small CIFAR by name: [n, 3 * 32 * 32] pixels, channels first; red is the image's index."""

    def batch(first: int, count: int) -> bytes:
        data = np.zeros((count, 3, 32, 32), np.uint8)
        data[:, 0] = np.arange(first, first + count)[:, None, None]
        labels = [i % classes for i in range(first, first + count)]
        return pickle.dumps({"data": data.reshape(count, -1), "labels" if classes == 10 else "fine_labels": labels})

    names = {"label_names" if classes == 10 else "fine_label_names": [f"thing {i}" for i in range(classes)]}
    if classes == 10:
        batches = {f"data_batch_{i + 1}": batch(4 * i, 4) for i in range(5)}
        return {**batches, "test_batch": batch(100, TEST), "batches.meta": pickle.dumps(names)}
    return {"train": batch(0, 120), "test": batch(0, 110), "meta": pickle.dumps(names)}


def packed(folder: str, files: dict[str, bytes]) -> bytes:
    """A .tar.gz with a folder of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, bytes]]:
    """The files of each data set by name, as its publisher has them: in the folder `web`, with checksums known."""
    web = tmp_path / "web"
    web.mkdir()
    found = {}
    for name, dataset in MNISTS.items():
        files = mnist_files()
        monkeypatch.setattr(dataset, "resources", [(file, md5(content)) for file, content in files.items()])
        monkeypatch.setattr(dataset, "mirrors", [(tmp_path / "gone").as_uri() + "/", web.as_uri() + "/"])
        found[name] = {f"{dataset.__name__}/raw/{file}": content for file, content in files.items()}
    for name, dataset in CIFARS.items():
        files = cifar_files(int(name.removeprefix("cifar")))
        archive = packed(dataset.base_folder, files)
        for table in ("train_list", "test_list"):
            monkeypatch.setattr(dataset, table, [[file, md5(files[file])] for file, _ in getattr(dataset, table)])
        monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": md5(files[dataset.meta["filename"]])})
        monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
        monkeypatch.setattr(dataset, "url", (web / dataset.filename).as_uri())
        found[name] = {dataset.filename: archive}
    return found


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def publish(web: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (web / Path(name).name).write_bytes(content)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


Published = dict[str, dict[str, bytes]]


@pytest.mark.parametrize("name", MNISTS)
def test_mnist(name: str, published: Published, tmp_path: Path) -> None:
    put(tmp_path / "data", published[name])
    source = load_source(name, data_dir=tmp_path / "data")
    assert (source.name, source.class_names, source.increment) == (name, tuple(MNISTS[name].classes), 2)
    assert source.test is not None
    for part, (images, count) in enumerate(((source.train, TRAIN), (source.test, TEST))):
        assert len(images) == count
        assert images.labels.tolist() == [i % 10 for i in range(count)]
        assert images.labels.dtype == torch.int64
        assert [(image.mode, image.size) for image in images.images] == [("L", (28, 28))] * count
        assert images.images[7].getpixel((0, 0)) == 7
        assert images.images[7].getpixel((1, 0)) == part
    assert source.train.digest != source.test.digest
    # What was there is all that is there.
    assert everything(tmp_path / "data") == published[name]


@pytest.mark.parametrize(("name", "increment"), [("cifar10", 2), ("cifar100", 10)])
def test_cifar(name: str, increment: int, published: Published, tmp_path: Path) -> None:
    put(tmp_path / "data", published[name])
    source = load_source(name, data_dir=tmp_path / "data")
    classes = 5 * increment if increment == 2 else 100
    assert (source.name, source.increment) == (name, increment)
    assert source.class_names == tuple(f"thing {i}" for i in range(classes))
    assert source.test is not None
    assert (len(source.train), len(source.test)) == ((TRAIN, TEST) if classes == 10 else (120, 110))
    assert source.train.labels[:12].tolist() == [i % classes for i in range(12)]
    image = source.train.images[7]
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (32, 32), (7, 0, 0))
    assert everything(tmp_path / "data") == published[name]


def test_unpacked_files_will_do(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "archives", published["mnist"])
    unpacked = {name.removesuffix(".gz"): gzip.decompress(content) for name, content in published["mnist"].items()}
    put(tmp_path / "files", unpacked)
    put(tmp_path / "archives", published["cifar10"])
    put(tmp_path / "files" / "cifar-10-batches-py", cifar_files(10))
    for name in ("mnist", "cifar10"):
        archives, files = (load_source(name, data_dir=tmp_path / kind) for kind in ("archives", "files"))
        assert archives.train.digest == files.train.digest


def test_archives_that_were_packed_again_will_do(published: Published, tmp_path: Path) -> None:
    again = {name: gzip.compress(gzip.decompress(content), 1) for name, content in published["fashionmnist"].items()}
    assert again != published["fashionmnist"]
    put(tmp_path / "data", again)
    assert len(load_source("fashionmnist", data_dir=tmp_path / "data").train) == TRAIN


def test_streams(published: Published, tmp_path: Path) -> None:
    put(tmp_path, published["mnist"])
    stream = load_source("mnist", data_dir=tmp_path).stream(0)
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert [(len(task.train), len(task.test)) for task in stream.tasks] == [(4, 2)] * 5


@pytest.mark.parametrize("name", [*MNISTS, *CIFARS])
def test_missing_files_are_downloaded(
    name: str, published: Published, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path / "web", published[name])
    seen = []

    def track(items: list[str], description: str) -> list[str]:
        seen.append((len(items), description))
        return items

    data = tmp_path / "new" / "data"
    first = load_source(name, data_dir=data, track=track)  # type: ignore[arg-type]
    assert seen == [(len(published[name]), f"downloading {name}")]
    assert everything(data) == published[name]
    assert list(data.parent.iterdir()) == [data]
    (tmp_path / "web").rename(tmp_path / "offline")
    assert load_source(name, data_dir=data).train.digest == first.train.digest
    assert capfd.readouterr() == ("", "")


def test_only_what_is_missing_is_downloaded(published: Published, tmp_path: Path) -> None:
    publish(tmp_path / "web", published["mnist"])
    again = {name: gzip.compress(gzip.decompress(content), 1) for name, content in published["mnist"].items()}
    again.pop("MNIST/raw/t10k-labels-idx1-ubyte.gz")
    put(tmp_path / "data", again)
    load_source("mnist", data_dir=tmp_path / "data")
    assert everything(tmp_path / "data") == published["mnist"] | again


IDX = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "files", "folder"),
    [
        ("mnist", IDX, "data/MNIST/raw"),
        ("fashionmnist", IDX, "data/FashionMNIST/raw"),
        ("cifar10", "cifar-10-python.tar.gz", "data"),
        ("cifar100", "cifar-100-python.tar.gz", "data"),
    ],
)
def test_without_network_the_error_says_what_to_do(name: str, files: str, folder: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"^data: {name} is not all in") as caught:
        load_source(name, data_dir=tmp_path / "data")
    message = str(caught.value)
    assert "can't be downloaded (<urlopen error no network in tests>)" in message
    assert message.endswith(f"; put {files} into {tmp_path / folder}, or name another folder with --data-dir")
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*MNISTS, *CIFARS])
def test_download_that_breaks_off_leaves_nothing(name: str, published: Published, tmp_path: Path) -> None:
    publish(tmp_path / "web", published[name])
    *_, last = published[name]
    web = tmp_path / "web" / Path(last).name
    web.write_bytes(web.read_bytes()[:-1])
    with pytest.raises(OSError, match=rf"can't be downloaded \(what came from .*{web.name} has a wrong checksum\)"):
        load_source(name, data_dir=tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["web"]


def test_folder_of_data_is_a_file(published: Published, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(NotADirectoryError, match=rf"data_dir: {tmp_path}/data is a file; expected a folder"):
        load_source("mnist", data_dir=tmp_path / "data")


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [damage, cut, empty])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz"),
        ("fashionmnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
    ],
)
def test_damaged_archive(name: str, file: str, spoil, published: Published, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    put(tmp_path, published[name])
    spoil(tmp_path / file)
    before = everything(tmp_path)
    with pytest.raises(ValueError, match="is damaged") as caught:
        load_source(name, data_dir=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"data: {tmp_path / file} is damaged: ")
    assert message.endswith("; remove it to have it downloaded again")
    assert "\n" not in message
    assert everything(tmp_path) == before


@pytest.mark.parametrize("spoil", [cut, empty])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_file_of_mnist(file: str, spoil, published: Published, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    put(tmp_path, {name.removesuffix(".gz"): gzip.decompress(content) for name, content in published["mnist"].items()})
    spoil(tmp_path / "MNIST" / "raw" / file)
    with pytest.raises(ValueError, match=rf"^data: {tmp_path}/MNIST/raw/{file} is damaged: "):
        load_source("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("spoil", [damage, cut, empty, os.remove])
@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_file_of_cifar(file: str, spoil, published: Published, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "cifar-10-batches-py"
    put(folder, cifar_files(10))
    spoil(folder / file)
    with pytest.raises(ValueError, match="is missing or damaged") as caught:
        load_source("cifar10", data_dir=tmp_path)
    assert str(caught.value) == (
        f"data: {folder / file} is missing or damaged; remove {folder} to have it downloaded again"
    )
    # The archive makes up for it.
    put(tmp_path, published["cifar10"])
    assert len(load_source("cifar10", data_dir=tmp_path).train) == TRAIN


@pytest.mark.parametrize("labels", [np.arange(TRAIN - 1) % 10, np.arange(TRAIN) % 11])
def test_labels_that_do_not_fit_the_images(labels: np.ndarray, published: Published, tmp_path: Path) -> None:
    put(tmp_path, published["mnist"])
    path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(labels.astype(np.uint8))))
    with pytest.raises(ValueError, match=rf"data: {path} does not fit its images: expected 20 labels below 10, got"):
        load_source("mnist", data_dir=tmp_path)


def test_file_that_may_not_be_read(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, published["mnist"])
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(gzip.GzipFile, "read", refuse)
    with pytest.raises(PermissionError, match=rf"data: mnist: {path} can't be read: Permission denied"):
        load_source("mnist", data_dir=tmp_path)
