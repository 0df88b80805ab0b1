"""`folder:PATH`: layouts, what an image may be, and everything that is refused before training."""

import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from artsy_ext.data import Images, Source, load_source

Draw = Callable[..., Path]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """draw("cats/1.png", mode="RGB", color="red"): a picture of 4x3 pixels in the folder `pets`."""

    def draw(name: str, mode: str = "RGB", color: object = "red", **options: object) -> Path:
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (4, 3), color).save(path, **options)  # type: ignore[arg-type]
        return path

    return draw


@pytest.fixture
def pets(draw: Draw, tmp_path: Path) -> Path:
    """Two classes of three images."""
    for i in range(3):
        draw(f"cats/{i}.png", color=(i, 0, 0))
        draw(f"dogs/{i}.png", color=(0, i, 0))
    return tmp_path / "pets"


@pytest.fixture
def parted(draw: Draw, tmp_path: Path) -> Path:
    """Two classes of two images to learn from, one to test."""
    for i, name in enumerate(
        ("train/cats/0", "train/cats/1", "train/dogs/0", "train/dogs/1", "test/cats/0", "test/dogs/0")
    ):
        draw(f"{name}.png", color=(i, 0, 0))
    return tmp_path / "pets"


def load(path: Path) -> Source:
    return load_source(f"folder:{path}")


def refused(path: Path, message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error) as caught:
        load(path)
    assert str(caught.value) == message


def test_class_folders(pets: Path) -> None:
    source = load(pets)
    assert (source.name, source.class_names, source.test, source.increment) == (
        "folder:pets",
        ("cats", "dogs"),
        None,
        None,
    )
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [image.getpixel((0, 0)) for image in source.train.images] == [
        (0, 0, 0),
        (1, 0, 0),
        (2, 0, 0),
        (0, 0, 0),
        (0, 1, 0),
        (0, 2, 0),
    ]
    stream = source.stream(tasks=2)
    assert [(len(task.train), len(task.test)) for task in stream.tasks] == [(2, 1), (2, 1)]


@pytest.mark.parametrize("name", ["test", "val"])
def test_given_training_and_test_images(parted: Path, name: str) -> None:
    (parted / "test").rename(parted / name)
    (parted / "annotations").mkdir()
    source = load(parted)
    assert (source.name, source.class_names) == ("folder:pets", ("cats", "dogs"))
    assert source.test is not None
    assert source.train.labels.tolist() == [0, 0, 1, 1]
    assert source.test.labels.tolist() == [0, 1]
    assert [image.getpixel((0, 0))[0] for image in source.test.images] == [4, 5]
    assert source.train.digest != source.test.digest


def test_test_images_without_classes_give_way_to_val(parted: Path, draw: Draw) -> None:
    (parted / "test").rename(parted / "val")
    draw("test/unlabelled.png")
    test = load(parted).test
    assert test is not None
    assert test.labels.tolist() == [0, 1]


def test_test_comes_before_val(parted: Path, draw: Draw) -> None:
    draw("val/birds/0.png")
    assert load(parted).class_names == ("cats", "dogs")


def test_order_is_that_of_torchvision(draw: Draw, tmp_path: Path) -> None:
    for name in (
        "b/10.png",
        "b/9.png",
        "b/x/1.png",
        "b/x-1/1.png",
        "b/-/1.png",
        "B/1.png",
        "a b/1.png",
        "é/1.png",
        "a/z.png",
        "a/Z.png",
    ):
        draw(name)
    expected = ImageFolder(tmp_path / "pets")
    source = load(tmp_path / "pets")
    assert list(source.class_names) == expected.classes
    assert source.train.labels.tolist() == expected.targets
    paths = [os.path.join(tmp_path / "pets", name) for name in source.train.images.names]  # type: ignore[attr-defined]
    assert paths == [path for path, _ in expected.samples]


def test_hidden_and_loose_files_are_left_out(pets: Path) -> None:
    expected = load(pets).train
    (pets / "README.txt").write_text("pets")
    (pets / ".git").mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
        (pets / "cats" / name).write_bytes(b"no image")
    (pets / "cats" / ".thumbnails").mkdir()
    (pets / "cats" / ".thumbnails" / "0.txt").write_text("no image")
    source = load(pets)
    assert source.class_names == ("cats", "dogs")
    assert source.train.digest == expected.digest


def test_a_link_that_leads_back_is_followed_once(pets: Path) -> None:
    (pets / "cats" / "again").symlink_to(pets / "cats")
    assert len(load(pets).train) == 6


def test_digest_is_that_of_names_and_content(pets: Path, tmp_path: Path) -> None:
    digest = load(pets).train.digest
    moved = tmp_path / "elsewhere" / "animals"
    shutil.copytree(pets, moved)
    os.utime(moved / "cats" / "0.png", (0, 0))
    assert load(moved).train.digest == digest
    (moved / "cats" / "0.png").rename(moved / "cats" / "zero.png")
    assert load(moved).train.digest != digest
    (moved / "cats" / "zero.png").rename(moved / "cats" / "0.png")
    shutil.copy(moved / "cats" / "1.png", moved / "cats" / "0.png")
    assert load(moved).train.digest != digest


def test_path_may_be_relative_or_of_the_user(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pets)
    source = load(Path("."))
    assert source.name == "folder:pets"
    monkeypatch.chdir(pets.parent)
    assert source.train.images[1].getpixel((0, 0)) == (1, 0, 0)
    monkeypatch.setenv("HOME", str(pets.parent))
    assert load(Path("~/pets")).name == "folder:pets"


def test_progress_is_shown_for_every_file(pets: Path) -> None:
    seen = []

    def track(items: Sequence[str], description: str) -> Sequence[str]:
        seen.append((len(items), description))
        return items

    load_source(f"folder:{pets}", track=track)
    assert seen == [(6, "checking images")]


def test_many_files_keep_their_order(tmp_path: Path, draw: Draw) -> None:
    for i in range(150):
        draw(f"cats/{i:03}.bmp", color=(i, 0, 0))
    assert [image.getpixel((0, 0))[0] for image in load(tmp_path / "pets").train.images] == list(range(150))


# What an image may be


def only(tmp_path: Path) -> Image.Image:
    """The first image of the folder `pets`."""
    image: Image.Image = load(tmp_path / "pets").train.images[0]
    return image


GREY, COLOUR = ("L", (4, 3)), ("RGB", (4, 3))


@pytest.mark.parametrize(
    ("name", "mode", "color", "expected"),
    [
        ("1.png", "L", 100, (*GREY, 100)),
        ("1.png", "1", 1, (*GREY, 255)),
        ("1.png", "LA", (100, 255), (*GREY, 100)),
        ("1.png", "LA", (100, 0), (*GREY, 255)),
        ("1.png", "RGB", (1, 2, 3), (*COLOUR, (1, 2, 3))),
        ("1.png", "RGBA", (1, 2, 3, 255), (*COLOUR, (1, 2, 3))),
        ("1.png", "RGBA", (1, 2, 3, 0), (*COLOUR, (255, 255, 255))),
        ("1.png", "P", 0, (*COLOUR, (0, 0, 0))),
        ("1.tif", "CMYK", (255, 0, 0, 0), (*COLOUR, (0, 255, 255))),
        ("1.jpg", "CMYK", (0, 0, 0, 255), (*COLOUR, (0, 0, 0))),
        ("1.webp", "RGB", (0, 0, 0), (*COLOUR, (0, 0, 0))),
        ("1.png", "I;16", 65535, (*GREY, 255)),
        ("1.png", "I;16", 257 * 100, (*GREY, 100)),
        ("1.png", "I;16", 257 * 100 - 129, (*GREY, 99)),
        ("1.tif", "I;16", 257 * 100, (*GREY, 100)),
        ("1.tif", "I;16B", 257 * 100, (*GREY, 100)),
        ("1.pgm", "I", 257 * 100, (*GREY, 100)),
    ],
)
def test_modes(draw: Draw, tmp_path: Path, name: str, mode: str, color: object, expected: tuple[object, ...]) -> None:
    draw(f"cats/{name}", mode, color)
    image = only(tmp_path)
    assert (image.mode, image.size, image.getpixel((0, 0))) == expected


def test_transparent_colour_of_a_palette(draw: Draw, tmp_path: Path) -> None:
    draw("cats/1.gif", "P", 0, transparency=0)
    assert only(tmp_path).getpixel((0, 0)) == (255, 255, 255)


def test_transparent_grey(draw: Draw, tmp_path: Path) -> None:
    draw("cats/1.png", "L", 10, transparency=10)
    image = only(tmp_path)
    assert (image.mode, image.getpixel((0, 0))) == ("L", 255)


def test_first_of_several_frames(draw: Draw, tmp_path: Path) -> None:
    draw("cats/1.gif", color="red", save_all=True, append_images=[Image.new("RGB", (4, 3), "blue")])
    assert only(tmp_path).getpixel((0, 0)) == (255, 0, 0)


def test_images_stand_upright(tmp_path: Path) -> None:
    (tmp_path / "pets" / "cats").mkdir(parents=True)
    picture = Image.new("RGB", (4, 3), "white")
    picture.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    picture.save(tmp_path / "pets" / "cats" / "1.png", exif=exif)
    image = only(tmp_path)
    assert (image.size, image.getpixel((2, 0))) == ((3, 4), (0, 0, 0))


def test_broken_exif_data_say_nothing(draw: Draw, tmp_path: Path) -> None:
    draw("cats/1.png", exif=b"Exif\0\0garbage")
    assert only(tmp_path).size == (4, 3)


def test_suffix_does_not_matter(draw: Draw, tmp_path: Path) -> None:
    draw("cats/1.png").rename(tmp_path / "pets" / "cats" / "one")
    assert only(tmp_path).size == (4, 3)


def test_images_are_read_in_other_processes(pets: Path) -> None:
    images = pickle.loads(pickle.dumps(Images(load(pets).train, torch.arange(6), transform=red)))
    ((batch, labels),) = DataLoader(images, batch_size=6, num_workers=1)
    assert batch.tolist() == [0, 1, 2, 0, 0, 0]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def red(image: Image.Image) -> torch.Tensor:
    return torch.tensor(float(np.asarray(image)[0, 0, 0]))


# What is refused


def test_path_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "pets"
    refused(path, f"data: {path} can't be read: No such file or directory", FileNotFoundError)


def test_path_is_a_file(draw: Draw) -> None:
    path = draw("1.png")
    refused(path, f"data: {path} can't be read: Not a directory", NotADirectoryError)


@pytest.mark.parametrize("which", [".", "dogs", "dogs/puppies"])
def test_folder_that_may_not_be_read(pets: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (pets / "dogs" / "puppies").mkdir()
    scandir = os.scandir

    def guarded(path: str) -> object:
        if Path(path) == pets / which:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    refused(pets, f"data: {pets / which} can't be read: Permission denied", PermissionError)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read(pets: Path) -> None:
    (pets / "dogs" / "1.png").chmod(0)
    refused(pets, f"data: {pets}/dogs/1.png can't be read: Permission denied", PermissionError)


def test_broken_link(pets: Path) -> None:
    (pets / "cats" / "9.png").symlink_to(pets / "nowhere.png")
    refused(pets, f"data: {pets}/cats/9.png can't be read: No such file or directory", FileNotFoundError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe(pets: Path) -> None:
    os.mkfifo(pets / "cats" / "9.png")
    refused(pets, f"data: {pets}/cats/9.png is not an image that can be read: not a file")


def test_no_class_folders(draw: Draw, tmp_path: Path) -> None:
    draw("1.png")
    path = tmp_path / "pets"
    refused(path, f"data: {path} has no class folders; expected a folder of images for each class")


def test_empty_class_folder(pets: Path) -> None:
    (pets / "birds").mkdir()
    (pets / "birds" / ".DS_Store").write_bytes(b"")
    refused(pets, f"data: {pets}/birds has no images; expected at least one for each class")


def test_empty_class_folder_among_the_test_images(parted: Path) -> None:
    (parted / "test" / "dogs" / "0.png").unlink()
    refused(parted, f"data: {parted}/test/dogs has no images; expected at least one for each class")


@pytest.mark.parametrize(("where", "other"), [("train", "test"), ("test", "train")])
def test_class_that_one_part_lacks(parted: Path, draw: Draw, where: str, other: str) -> None:
    draw(f"{other}/birds/0.png")
    draw(f"{other}/newts/0.png")
    refused(parted, f"data: {parted / where} has no class folder 'birds', but {parted / other} has")


def test_training_images_without_test_images(parted: Path) -> None:
    (parted / "test").rename(parted / "validation")
    refused(parted, f"data: {parted} has class folders in train, so it must have them in test or val, too")


def test_parts_without_class_folders(draw: Draw, tmp_path: Path) -> None:
    path = tmp_path / "pets"
    draw("train/cats.1.png")
    draw("test/1.png")
    refused(path, f"data: {path}/train has no class folders; expected a folder of images for each class")
    draw("train/cats/1.png")
    refused(path, f"data: {path}/test has no class folders; expected a folder of images for each class")


def shorten(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-30])
    return ""


def write_text(path: Path) -> str:
    path.write_text("no image")
    return "of no format that PIL knows"


def write_nothing(path: Path) -> str:
    path.write_bytes(b"")
    return "of no format that PIL knows"


def write_floats(path: Path) -> str:
    Image.new("F", (4, 3)).save(path, format="TIFF")
    return "32 bits per pixel have no known range; expected 8 or 16"


def write_a_bomb(path: Path) -> str:
    """A PNG that says it has ten thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b""))
    return "Image size (10000000000 pixels)"


@pytest.mark.parametrize("spoil", [shorten, write_text, write_nothing, write_floats, write_a_bomb])
@pytest.mark.parametrize("name", ["dogs/1.png", "dogs/9.jpg", "dogs/notes.txt"])
def test_file_that_is_no_image(pets: Path, draw: Draw, spoil: Callable[[Path], str], name: str) -> None:
    path = draw("dogs/9.jpg").rename(pets / name)
    reason = spoil(path)
    with pytest.raises(ValueError, match="is not an image that can be read") as caught:
        load(pets)
    message = str(caught.value)
    assert message.startswith(f"data: {path} is not an image that can be read: {reason}")
    assert "\n" not in message


def test_large_image_that_pil_only_warns_of(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 11)
    with pytest.raises(ValueError, match=r"cats/0\.png is not an image that can be read: Image size \(12 pixels\)"):
        load(pets)


def test_file_that_changed_since_it_was_checked(pets: Path) -> None:
    images = load(pets).train.images
    shutil.copy(pets / "cats" / "1.png", pets / "cats" / "0.png")
    with pytest.raises(OSError, match=r"data: .*cats/0\.png has changed since it was checked"):
        images[0]
    assert images[1].getpixel((0, 0)) == (1, 0, 0)


def test_file_that_vanished_since_it_was_checked(pets: Path) -> None:
    images = load(pets).train.images
    (pets / "cats" / "0.png").unlink()
    with pytest.raises(OSError, match=r"data: .*cats/0\.png can't be read any more: No such file or directory"):
        images[0]


@pytest.fixture
def sketches(pets: Path, draw: Draw, tmp_path: Path) -> Path:
    """The pets again in another domain."""
    shutil.copytree(pets, tmp_path / "all" / "photos")
    shutil.copytree(pets, tmp_path / "all" / "sketches")
    return tmp_path / "all"


def test_domains(sketches: Path, pets: Path) -> None:
    one, source = load(pets), load_source(f"folder:{sketches}", domains=("sketches", "photos"))
    count = len(one.class_names)
    assert source.class_names == tuple(f"{name} {d}" for d in ("sketches", "photos") for name in one.class_names)
    assert (source.domains, source.increment) == (("sketches", "photos"), count)
    assert source.train.labels.tolist() == [*one.train.labels.tolist(), *(one.train.labels + count).tolist()]
    twice = [*one.train.images, *one.train.images]
    assert [image.tobytes() for image in source.train.images] == [image.tobytes() for image in twice]
    assert source.train.digest != load_source(f"folder:{sketches}", domains=("photos",)).train.digest


def test_domains_that_do_not_fit(sketches: Path, pets: Path, parted: Path) -> None:
    def refused_domains(message: str, *domains: str, name: str = f"folder:{sketches}") -> None:
        with pytest.raises((ValueError, OSError), match=message):
            load_source(name, domains=domains)

    refused_domains("domains: expected each once, got photos, photos", "photos", "photos")
    refused_domains("paintings can't be read: No such file", "photos", "paintings")
    refused_domains("domains: expected with folder:PATH alone, got photos with digits", "photos", name="digits")
    shutil.copytree(parted, sketches / "parted")
    refused_domains("domains: parted and photos must both have train and test, or neither", "photos", "parted")
    (sketches / "sketches" / "cats").rename(sketches / "sketches" / "birds")
    refused_domains(
        "domains: sketches must have the classes of photos, but only one of them has 'birds'", "photos", "sketches"
    )
