"""Runs as Python users start them: a folder of images nobody has seen, learned, written, opened and asked again."""

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image

from artsy_ext.data import Images, load_source
from artsy_ext.learner import (
    METHODS,
    Features,
    FinishedRun,
    LearnerConfig,
    Run,
    RunConfig,
    open_backbone,
    run_experiment,
)
from artsy_ext.learner.config import read_toml
from artsy_ext.learner.predict import Answer, predict, to_csv, to_list
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.results import schema, without_times
from artsy_ext.learner.run import open_classifier
from artsy_ext.nn import RoutedViT

CLASSES = ("circle", "line", "plus", "star")
FAST = LearnerConfig(epochs=2, stdp_epochs=2, mlp_steps=20)


def draw_folder(path: Path, per_class: int = 20, start: int = 0) -> Path:
    """Class folders of handwritten digits 0 to 3, under other names."""
    source = load_source("digits").train
    for label, name in enumerate(CLASSES):
        (path / name).mkdir(parents=True)
        chosen = (source.labels == label).nonzero().flatten()[start : start + per_class]
        for index in chosen.tolist():
            pixels = (255 * source.images[index][0]).round().to(torch.uint8).numpy()
            Image.fromarray(pixels).resize((40, 40)).save(path / name / f"{index}.png")
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def config(images: Path) -> RunConfig:
    return RunConfig(data=f"folder:{images}", tasks=2, methods=("simplecil", "artsy"), learner=FAST)


@pytest.fixture(scope="module")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    Run(config, folder).train()
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_the_run_folder(finished: Path, config: RunConfig) -> None:
    names = {path.name for path in finished.iterdir()}
    pictures = ("accuracy", "matrix", "synapses", "silence", "weights", "spikes")
    assert names == {"results.json", "config.toml", "checkpoint", *(f"{name}.png" for name in pictures)}
    results = results_of(finished)
    jsonschema.validate(results, schema(), cls=jsonschema.Draft202012Validator)
    assert results["arguments"]["run"] == {**config.to_mapping(learner=False), "threads": 1}
    assert results["arguments"]["config"]["epochs"] == 2
    assert len(results["arguments"]["images"]) == 1
    assert RunConfig.from_mapping(read_toml(finished / "config.toml")) == replace(config, threads=1)


def test_it_has_learned(finished: Path) -> None:
    methods = results_of(finished)["methods"]
    assert methods["artsy"]["last_accuracy"]["mean"] >= 75  # chance: 25


def test_a_new_process_answers_the_same_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "artsy_ext.cli", "eval", str(finished), "--json", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    evaluation = json.loads(done.stdout)
    artsy = results_of(finished)["methods"]["artsy"]
    assert evaluation["same_images"] is True
    assert evaluation["last_accuracy"] == artsy["last_accuracy"]["values"][0]
    assert evaluation["accuracy"] == pytest.approx(artsy["accuracy_matrix"]["values"][0][-1])
    # How many were silent while tasks were learned is told by the run alone: a classifier that is loaded has no past.
    of_learning = {"silent_by_epoch", "silent_by_task"}
    for name, metric in artsy["synapses"].items():
        assert evaluation["synapses"][name] == (None if name in of_learning else metric["values"][0])


def test_its_configuration_gives_it_again(finished: Path, tmp_path: Path) -> None:
    config = RunConfig.from_mapping(read_toml(finished / "config.toml"))
    results = Run(config, tmp_path / "again", cache_dir=tmp_path / "cache").train()
    assert without_times(results) == without_times(results_of(finished))


def test_features_are_computed_once_and_used_by_the_evaluation(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(replace(config, methods=("artsy",), seeds=2), tmp_path / "run", cache_dir=tmp_path / "cache").train()
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1
    monkeypatch.setattr("artsy_ext.learner.features.Features._compute", None)
    evaluation = FinishedRun(tmp_path / "run", cache_dir=tmp_path / "cache").evaluate()
    assert evaluation["last_accuracy"] == results_of(tmp_path / "run")["methods"]["artsy"]["last_accuracy"]["values"][0]


def test_all_other_images_of_the_same_classes_are_asked_about(finished: Path, tmp_path: Path) -> None:
    other = draw_folder(tmp_path / "other", per_class=11, start=50)
    (other / "star" / "zzz.png").write_bytes((other / "line" / next(os.walk(other / "line"))[2][0]).read_bytes())
    run = FinishedRun(finished, data=f"folder:{other}")
    assert sum(len(task.test) for task in run.stream.tasks) == 4 * 11 + 1
    evaluation = run.evaluate()
    assert evaluation["same_images"] is False
    assert evaluation["last_accuracy"] >= 60


def test_a_run_of_built_in_data_can_be_asked_about_a_folder(tmp_path: Path) -> None:
    Run(RunConfig(methods=("artsy",), learner=FAST), tmp_path / "run").train()
    source = load_source("digits").train
    for index in range(40):
        (tmp_path / "images" / str(int(source.labels[index]))).mkdir(parents=True, exist_ok=True)
        pixels = (255 * source.images[index][0]).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / str(int(source.labels[index])) / f"{index}.png")
    evaluation = FinishedRun(tmp_path / "run", data=f"folder:{tmp_path / 'images'}").evaluate()
    assert [len(classes) for classes in evaluation["classes"]] == [2] * 5
    assert evaluation["last_accuracy"] >= 60


def test_images_that_have_changed_are_not_taken_for_the_runs(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = draw_folder(tmp_path / "images", per_class=6)
    Run(replace(config, data=f"folder:{images}", methods=("artsy",)), tmp_path / "run").train()
    next((images / "line").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"^data: folder:.* has changed since the run"):
        FinishedRun(tmp_path / "run")


def test_paths_mean_the_same_from_anywhere(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_folder(tmp_path / "here" / "images", per_class=4)
    monkeypatch.chdir(tmp_path / "here")
    Run(replace(config, data="folder:images", methods=("artsy",)), Path("../run")).train()
    monkeypatch.chdir(tmp_path)
    assert FinishedRun(Path("run")).same_images


def test_output_in_the_folder_of_images(config: RunConfig, tmp_path: Path) -> None:
    images = draw_folder(tmp_path / "images", per_class=2)
    with pytest.raises(ValueError, match=r"^output: .* must not lie in the folder of the data$"):
        Run(replace(config, data=f"folder:{images}"), images / "run")


def test_every_method_takes_classes_of_a_single_image(config: RunConfig, tmp_path: Path) -> None:
    images = draw_folder(tmp_path / "images", per_class=2)  # one to learn from, one to be asked about
    results = Run(replace(config, data=f"folder:{images}", methods=(), tasks=4), tmp_path / "run").train()
    assert list(results["methods"]) == list(METHODS)


def test_a_cache_that_cannot_be_written_does_not_end_the_run(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = Run(replace(config, methods=("simplecil",)), tmp_path / "run", cache_dir=tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match="^cache_dir: features are not kept in "):
        run.train()
    assert (tmp_path / "run" / "results.json").exists()


def test_the_classifier_does_not_hold_the_images(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    hold = Images.hold
    monkeypatch.setattr(Images, "hold", lambda images: held.append(weakref.ref(found := hold(images))) or found)
    source, backbone = load_source(config.data), open_backbone("demo")
    result = run_experiment(
        lambda seed: source.stream(seed, backbone.transform, tasks=2),
        Features(RoutedViT(backbone.model)),
        backbone.statistics,
        ["artsy"],
        [0],
        FAST,
        Progress.silent(),
    )
    gc.collect()
    assert result.classifier is not None
    assert len(held) == 4
    assert [reference() for reference in held] == [None] * 4


def test_class_order_from_a_file(config: RunConfig, tmp_path: Path) -> None:
    order = tmp_path / "order.txt"
    order.write_text("star\nline\n\n  plus  \ncircle\n")
    run = Run(replace(config, class_order=str(order), seeds=2), tmp_path / "run")
    assert run.setup.stream(0).class_names == run.setup.stream(1).class_names == ("star", "line", "plus", "circle")


def break_nothing(folder: Path) -> None:
    pass


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "options", "error", "message"),
    [
        (shutil.rmtree, {}, FileNotFoundError, r"run holds no run: there is no results\.json"),
        (
            lambda f: shutil.rmtree(f / "checkpoint"),
            {},
            FileNotFoundError,
            "run has no checkpoint: artsy was not",
        ),
        (lambda f: (f / "results.json").write_text("{"), {}, ValueError, r"results\.json is damaged: "),
        (lambda f: (f / "results.json").write_text("[]"), {}, ValueError, r"results\.json is damaged: "),
        (
            lambda f: (f / "results.json").write_text('{"schema_version": 2}'),
            {},
            ValueError,
            r"results\.json is damaged",
        ),
        (
            lambda f: (f / "checkpoint" / "model.safetensors").unlink(),
            {},
            FileNotFoundError,
            r"checkpoint is not complete: there is no model\.safetensors",
        ),
        (
            lambda f: edit_json(f / "results.json", schema_version=99),
            {},
            ValueError,
            r"results\.json has schema version 99, this version of artsy_ext reads 2",
        ),
        (lambda f: (f / "config.toml").write_text("data ="), {}, ValueError, r"config\.toml is no TOML file"),
        (lambda f: (f / "config.toml").unlink(), {}, FileNotFoundError, r"config\.toml"),
        (
            lambda f: edit_json(f / "checkpoint" / "model.json", format=9),
            {},
            ValueError,
            "checkpoint has format 9, this version of artsy_ext reads up to 1",
        ),
        (lambda f: edit_json(f / "checkpoint" / "model.json", seed=5), {}, ValueError, r"model\.json is damaged: "),
        (lambda f: flip(f / "checkpoint" / "model.json"), {}, ValueError, r"model\.json is damaged: "),
        (lambda f: flip(f / "checkpoint" / "model.safetensors"), {}, ValueError, r"model\.safetensors is damaged: "),
        (
            break_nothing,
            {"backbone": "vit_tiny_patch16_224:random"},
            ValueError,
            "backbone: the run has demo, only its weight file may move, got vit_tiny_patch16_224:random",
        ),
        (
            lambda f: edit_json(f / "checkpoint" / "model.json", backbone="0" * 64, checksum=None),
            {},
            ValueError,
            r"model\.json is damaged",
        ),
        (break_nothing, {"backbone": "resnet"}, ValueError, "backbone: "),
        (
            break_nothing,
            {"data": "digits"},
            ValueError,
            "data: digits must have the classes of the run, but the run has no '0'",
        ),
        (break_nothing, {"data": "nothing"}, ValueError, "data: 'nothing' is not known"),
    ],
)
def test_what_cannot_be_opened(
    damage: Callable[[Path], Any], options: dict[str, str], error: type[Exception], message: str, copied: Path
) -> None:
    damage(copied)
    with pytest.raises(error, match=message):
        FinishedRun(copied, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "digit"}, r"data: 'digit' is not known; did you mean digits\?"),
        ({"methods": ("arsty",)}, "methods: 'arsty' is not known"),
        ({"backbone": "vit_tiny_patch16_225"}, "backbone: "),
        ({"tasks": 5}, "tasks: expected at most as many tasks as classes, got 5 for 4 classes"),
        ({"tasks": None}, "needs a number of tasks"),
        ({"increment": 2}, "tasks: expected either tasks or increment"),
    ],
)
def test_what_cannot_start(changes: dict[str, Any], message: str, config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Run(replace(config, **changes), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", ["circle\nline\nplus", "circle\nline\nplus\nstar\nstar", "a\nline\nplus\nstar"])
def test_a_class_order_that_does_not_fit(names: str, config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "order.txt").write_text(names)
    with pytest.raises(ValueError, match=r"^class_order: expected each class of .* once, got "):
        Run(replace(config, class_order=str(tmp_path / "order.txt")), tmp_path / "run")


def test_threads_are_the_callers_again(config: RunConfig, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    Run(replace(config, methods=("simplecil",), threads=2), tmp_path / "run").train()
    assert torch.get_num_threads() == before
    assert results_of(tmp_path / "run")["arguments"]["run"]["threads"] == 2
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_predictions_are_those_of_the_classifier(finished: Path, images: Path) -> None:
    star = images / "star"
    first = sorted((images / "line").iterdir())[0]
    answers = predict(finished, [first, star])
    files = [first, *sorted(star.iterdir())]
    assert [answer.image for answer in answers] == list(map(str, files))

    _, classifier, backbone = open_classifier(finished)
    batch = torch.stack([backbone.transform(Image.open(file)) for file in files])
    probabilities, mask = classifier.predict_proba(batch), classifier.synapse_mask(batch)
    names = classifier.class_names_ or []
    assert [answer.label for answer in answers] == [names[c] for c in classifier.predict(batch).tolist()]
    # Up to how sums are ordered where two sub-networks share a batch.
    assert [answer.probability for answer in answers] == pytest.approx(probabilities.amax(1).tolist())
    assert [answer.functional for answer in answers] == [
        [s + 1 for s in range(classifier.num_tasks) if row[s]] for row in mask.tolist()
    ]
    assert sum(answer.label == "star" for answer in answers[1:]) >= 15


def test_predictions_as_text() -> None:
    answers = [Answer("a, b.png", "cat", 0.75, [1, 3]), Answer("c.png", "dog", 1 / 3, [])]
    assert to_csv(answers) == ('image,class,probability,functional\n"a, b.png",cat,0.750000,1 3\nc.png,dog,0.333333,\n')
    assert to_list(answers)[1] == {"image": "c.png", "class": "dog", "probability": 0.333333, "functional": []}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.png", "images: there is no file .*nowhere.png"),
        ("empty", "images: expected at least one, got none in .*empty"),
        ("notes.png", "images: .*notes.png is not an image that can be read: of no format that PIL knows"),
        ("pipe", "images: .*pipe is not an image that can be read: not a file"),
    ],
)
def test_what_is_no_image_is_named(finished: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.png").write_text("not a picture")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((ValueError, OSError), match=message):
        predict(finished, [tmp_path / name])
