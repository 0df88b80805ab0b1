"""Replay-free: once a task is learned, nothing that is kept lets its images be rebuilt, in memory or in the run folder.

Two looks at everything that a learner keeps. By size: what is kept is as large after twice as many images, so there is
no place in it for each. By content: no part of it is an image, or E0's or the sub-network's features of one, whatever
its scale. Violations that are planted show that both looks see.
"""

import gc
import json
import shutil
import types
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from artsy_ext.learner import ArtsyClassifier, LearnerConfig, Run, RunConfig
from artsy_ext.nn import RoutedViT

PER_CLASS = 20


def kept_by(thing: Any, backbone: nn.Module) -> Iterator[Any]:
    """Every tensor, array and byte string that an object leads to, through closures, too; E0 excepted."""
    seen, waiting = {id(backbone)}, [thing]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, types.ModuleType, str, int, float, types.CodeType)):
            continue
        seen.add(id(thing))
        if isinstance(thing, (Tensor, np.ndarray, bytes, bytearray, Image.Image)):
            yield thing
        if isinstance(thing, types.FunctionType):  # its globals are the program's, not its own
            waiting += [thing.__closure__, thing.__defaults__, thing.__dict__]
        else:
            waiting += gc.get_referents(thing)


def as_tensor(thing: Any) -> Tensor:
    """All that its memory holds, where a view is but a part of it."""
    if isinstance(thing, Tensor):
        whole = torch.empty(0, dtype=thing.dtype).set_(thing.detach().cpu().untyped_storage())
        # In its own shape where it is the whole: rows and columns can be looked at then.
        return thing.detach().cpu() if thing.numel() == whole.numel() else whole
    if isinstance(thing, (bytes, bytearray)):
        thing = np.frombuffer(thing, np.uint8)
    return torch.from_numpy(np.array(thing))


def sizes(things: Iterable[Any]) -> list[int]:
    return sorted(as_tensor(thing).numel() for thing in things)


def likeness(things: Iterable[Any], patterns: Tensor) -> float:
    """The highest correlation of a pattern [n, K] with K numbers that stand in a row somewhere, in any dimension."""
    found = 0.0
    patterns = F.normalize(patterns - patterns.mean(1, keepdim=True), dim=1)
    for thing in things:
        tensor = as_tensor(thing)
        for dim in range(max(tensor.dim(), 1)):
            row = tensor.movedim(dim, -1).flatten().float() if tensor.dim() else tensor.flatten().float()
            if len(row) < patterns.shape[1]:
                continue
            for windows in row.unfold(0, patterns.shape[1], 1).split(4096):
                windows = windows - windows.mean(1, keepdim=True)
                found = max(found, (F.normalize(windows, dim=1) @ patterns.t()).max().item())
    return found


@pytest.fixture(scope="module")
def fitted(tiny_vit: Any, tiny_config: LearnerConfig, make_data: Any) -> Callable[..., Any]:
    """fitted(per_class, kind): a classifier that has learned two tasks, and the images of both."""

    def fit(per_class: int = PER_CLASS, kind: type[ArtsyClassifier] = ArtsyClassifier) -> Any:
        classifier = kind(tiny_vit, config=replace(tiny_config, epochs=1, stdp_epochs=1))
        images = []
        for labels in ((0, 1), (2, 3)):
            data = make_data(labels, per_class=per_class, noise=1.0)
            images.append(data.tensors[0].clone())
            classifier.fit_task(data)
        return classifier, torch.cat(images)

    return fit


def patterns(classifier: ArtsyClassifier, vit: Any, images: Tensor) -> dict[str, Tensor]:
    """What must not be found: images, and features of them."""
    network = classifier.network_
    assert network is not None
    routed = RoutedViT(vit)
    with torch.no_grad():
        h0 = routed.base_features(routed.embed(images))
        return {"images": images.flatten(1), "features of E0": h0, "whitened features": network.whitening(h0)}


class KeepsImages(ArtsyClassifier):
    def fit_task(self, dataset: Any, **options: Any) -> ArtsyClassifier:
        self.memory = [*getattr(self, "memory", []), dataset]
        return super().fit_task(dataset, **options)


class KeepsImagesInAClosure(ArtsyClassifier):
    def fit_task(self, dataset: Any, **options: Any) -> ArtsyClassifier:
        images, before = dataset.tensors[0].half(), getattr(self, "memory", None)
        self.memory = lambda: (images, before)
        return super().fit_task(dataset, **options)


class KeepsFeatures(ArtsyClassifier):
    def fit_task(self, dataset: Any, **options: Any) -> ArtsyClassifier:
        with torch.no_grad():
            features = self.vit.base_features(self.vit.embed(dataset.tensors[0]))
        super().fit_task(dataset, **options)
        assert self.network_ is not None
        # Where it would go into the checkpoint, turned on its side and scaled.
        self.network_.register_buffer(f"memory{self.num_tasks}", 3 * features.t().contiguous() + 1)
        return self


class KeepsAView(ArtsyClassifier):
    def fit_task(self, dataset: Any, **options: Any) -> ArtsyClassifier:
        super().fit_task(dataset, **options)
        self.memory = [*getattr(self, "memory", []), dataset.tensors[0][:0]]
        return self


VIOLATIONS = [KeepsImages, KeepsImagesInAClosure, KeepsFeatures, KeepsAView]


def check_memory(fitted: Callable[..., Any], vit: Any, kind: type[ArtsyClassifier] = ArtsyClassifier) -> None:
    (classifier, images), (larger, _) = fitted(kind=kind), fitted(2 * PER_CLASS, kind)
    assert sizes(kept_by(larger, vit)) == sizes(kept_by(classifier, vit)), "more images, more memory"
    check_content(classifier, images, vit)


def check_content(classifier: ArtsyClassifier, images: Tensor, vit: Any) -> None:
    for name, rows in patterns(classifier, vit, images).items():
        assert likeness(kept_by(classifier, vit), rows) < 0.999, f"{name} are kept"


def test_memory_holds_no_image_of_an_old_task(fitted: Callable[..., Any], tiny_vit: Any) -> None:
    check_memory(fitted, tiny_vit)


@pytest.mark.parametrize("kind", VIOLATIONS)
def test_a_learner_that_keeps_something_is_caught(
    kind: type[ArtsyClassifier], fitted: Callable[..., Any], tiny_vit: Any
) -> None:
    with pytest.raises(AssertionError, match="more images, more memory"):
        check_memory(fitted, tiny_vit, kind)
    with pytest.raises(AssertionError, match="are kept"):
        check_content(*fitted(kind=kind), tiny_vit)


@pytest.mark.parametrize("kind", [ArtsyClassifier, KeepsFeatures])
def test_checkpoints_are_as_large_after_more_images(
    kind: type[ArtsyClassifier], fitted: Callable[..., Any], tmp_path: Path
) -> None:
    for number, per_class in enumerate((PER_CLASS, 2 * PER_CLASS)):
        fitted(per_class, kind)[0].save(tmp_path / str(number))
    few, many = ((tmp_path / name / "model.safetensors").stat().st_size for name in "01")
    assert (few == many) == (kind is ArtsyClassifier)


def draw_folder(path: Path, per_class: int) -> Path:
    """Four classes of images that nothing else in this process holds."""
    random = np.random.default_rng(7)
    for label in range(4):
        (path / str(label)).mkdir(parents=True)
        for index in range(per_class):
            picture = np.kron(random.integers(0, 2, (7, 7)) * (label + 1) * 40, np.ones((4, 4)))
            pixels = (picture + random.integers(0, 64, (28, 28))).astype(np.uint8)
            Image.fromarray(pixels).save(path / str(label) / f"{index}.png")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Folders of few and of twice as many images, with those of a run over each."""
    folder, learner = tmp_path_factory.mktemp("replay"), LearnerConfig(rank=2, epochs=1, stdp_epochs=1)
    made = []
    for per_class in (14, 28):
        images = draw_folder(folder / f"images {per_class}", per_class)
        config = RunConfig(data=f"folder:{images}", tasks=2, methods=("artsy",), learner=learner)
        Run(config, folder / f"run {per_class}").train()
        made.append((images, folder / f"run {per_class}"))
    return made


def structure(value: Any) -> Any:
    """JSON without its leaves."""
    if isinstance(value, dict):
        return {key: structure(item) for key, item in value.items()}
    return [structure(item) for item in value] if isinstance(value, list) else None


def contents(run: Path) -> dict[str, Any]:
    """What a run folder holds, but for the sizes of pictures, which are drawn from the rest."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.suffix == ".json":
            found[name] = structure(json.loads(path.read_text()))
        elif path.suffix == ".safetensors":
            found[name] = {key: tensor.shape for key, tensor in safetensors.torch.load_file(path).items()}
        elif path.suffix != ".png":
            found[name] = len(path.read_text().splitlines()) if path.is_file() else None
    assert {"results.json", "checkpoint/model.safetensors", "config.toml"} <= found.keys()
    return found


def check_folder(few: tuple[Path, Path], many: tuple[Path, Path]) -> None:
    assert contents(few[1]) == contents(many[1]), "more images, more in the folder"
    # A row from the middle of each image, as bytes and as numbers of any scale.
    rows = [np.array(Image.open(path))[14] for path in sorted(few[0].rglob("*.png"))]
    for path in few[1].rglob("*"):
        if path.suffix == ".safetensors":
            tensors, numbers = safetensors.torch.load_file(path), torch.from_numpy(np.stack(rows)).float()
            assert likeness(tensors.values(), numbers) < 0.99, f"{path.name} holds an image"
        if path.is_file():
            content = Image.open(path).convert("L").tobytes() if path.suffix == ".png" else path.read_bytes()
            assert not any(row.tobytes() in content for row in rows), f"{path.name} holds an image"


def test_run_folder_holds_no_image(runs: list[tuple[Path, Path]]) -> None:
    check_folder(*runs)


def plant_features(run: Path, images: Path) -> None:
    path = run / "checkpoint" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    count = len(list(images.rglob("*.png")))
    safetensors.torch.save_file({**tensors, "features": torch.randn(count, 96)}, path)


def plant_numbers(run: Path, images: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    results["methods"]["artsy"]["scores"] = [0.5] * len(list(images.rglob("*.png")))
    (run / "results.json").write_text(json.dumps(results))


def plant_an_image_in_a_picture(run: Path, images: Path) -> None:
    picture = Image.open(run / "accuracy.png").convert("L")
    picture.paste(Image.open(next(images.rglob("*.png"))), (56, 84))
    picture.save(run / "accuracy.png")


@pytest.mark.parametrize("plant", [plant_features, plant_numbers, plant_an_image_in_a_picture])
def test_a_run_folder_that_holds_something_is_caught(
    plant: Callable[[Path, Path], None], runs: list[tuple[Path, Path]], tmp_path: Path
) -> None:
    planted = []
    for number, (images, run) in enumerate(runs):
        shutil.copytree(run, tmp_path / str(number))
        plant(tmp_path / str(number), images)
        planted.append((images, tmp_path / str(number)))
    with pytest.raises(AssertionError, match=r"more in the folder|holds an image"):
        check_folder(*planted)


def live_images(packed: list[bytes]) -> int:
    """How many of some images a tensor of this process holds, as float32 from 0 to 1, whoever owns it."""
    gc.collect()
    memories = {
        thing.untyped_storage().data_ptr(): torch.empty(0, dtype=torch.uint8)
        .set_(thing.untyped_storage())
        .numpy()
        .tobytes()
        for thing in gc.get_objects()
        if issubclass(type(thing), Tensor) and thing.device.type == "cpu" and thing.dtype == torch.float32
    }
    return sum(any(zlib.decompress(image) in memory for memory in memories.values()) for image in packed)


def test_process_holds_no_image_after_a_run(tmp_path: Path) -> None:
    images = draw_folder(tmp_path / "images", per_class=10)
    learner = LearnerConfig(rank=2, epochs=1, stdp_epochs=1)
    run = Run(RunConfig(data=f"folder:{images}", tasks=2, methods=("artsy",), learner=learner), tmp_path / "run")
    stream = run.setup.stream(0).hold()
    # Compressed, they are no tensors that could be found.
    packed = [zlib.compress(x.numpy().tobytes()) for task in stream.tasks for x in task.train.tensors[0]]
    assert live_images(packed) == len(packed) == 28
    del stream
    run.train()
    assert live_images(packed) == 0
