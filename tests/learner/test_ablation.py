"""`artsy ablate`: what is measured, that it goes on where it stopped, and what it writes."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from rich.console import Console

from artsy_ext.data import load_source
from artsy_ext.learner import LearnerConfig, RunConfig, ablation
from artsy_ext.learner.ablation import BASE, ROWS, Ablation
from artsy_ext.learner.ablation_report import print_table
from artsy_ext.learner.config import SUBNETWORK_SETTINGS
from artsy_ext.learner.methods import METHODS
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.training import train_subnetwork
from artsy_ext.nn import RoutedViT

PARTS = ("threshold quantile", "sub-networks")
ROWS_OF_THE_TESTS = [row for row in ROWS if row.part != PARTS[0] or row.changes["quantile"] in (0.0, 0.02, 0.4)]


@pytest.fixture(scope="module", autouse=True)
def fewer_rows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "ROWS", ROWS_OF_THE_TESTS)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Four classes of 16 images in two tasks."""
    folder, digits = tmp_path_factory.mktemp("images"), load_source("digits").train
    for label in range(4):
        (folder / str(label)).mkdir()
        for index in (digits.labels == label).nonzero().flatten()[:16].tolist():
            pixels = (255 * digits.images[index][0]).to(torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / str(label) / f"{index}.png")
    learner = LearnerConfig(rank=2, epochs=1, stdp_epochs=1, calibration_samples=10)
    return RunConfig(data=f"folder:{folder}", tasks=2, seeds=2, learner=learner)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def done(config: RunConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ablation") / "done"
    return folder, Ablation(config, folder, parts=PARTS, cache_dir=cache).run()


def test_rows_are_of_settings_and_methods_that_there_are() -> None:
    known = {f.name for f in fields(LearnerConfig)}
    for row in ROWS:
        assert row.changes.keys() <= known
        assert row.method in METHODS
        replace(LearnerConfig(), **row.changes)
    assert len({row.name for row in [BASE, *ROWS]}) == 1 + len(ROWS)


def test_every_row_stands_beside_the_learner_as_it_is(done: tuple[Path, dict[str, Any]]) -> None:
    rows = done[1]["rows"]
    expected = [BASE, *(row for row in ROWS_OF_THE_TESTS if row.part in PARTS and row.changes != {"quantile": 0.02})]
    assert list(rows) == [row.name for row in expected]
    base = rows["artsy"]["last_accuracy"]["values"]
    assert len(base) == 2
    for row in rows.values():
        found = [
            value - difference
            for value, difference in zip(row["last_accuracy"]["values"], row["difference"]["values"], strict=True)
        ]
        assert found == pytest.approx(base)
    # A lower threshold makes no fewer sub-networks functional; the true one alone is one.
    counts = [rows[f"artsy,quantile={q}"]["synapses"]["mean_functional"]["mean"] for q in (0.0, 0.4)]
    assert counts == sorted(counts, reverse=True)
    assert rows["oracle"]["synapses"]["mean_functional"]["mean"] == 1.0
    assert rows["synapses"]["synapses"] is None


def test_table_json_csv_and_picture_say_the_same(done: tuple[Path, dict[str, Any]]) -> None:
    folder, results = done
    assert {path.name for path in folder.iterdir()} == {
        "ablation.json",
        "ablation.csv",
        "ablation.png",
        "config.toml",
        "rows",
    }
    assert json.loads((folder / "ablation.json").read_text()) == results
    lines = list(csv.DictReader(io.StringIO((folder / "ablation.csv").read_text())))
    console = Console(file=io.StringIO(), width=250)
    print_table(results, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for line, row in zip(lines, results["rows"].values(), strict=True):
        assert (line["part"], line["label"], line["method"]) == (row["part"], row["label"], row["method"])
        accuracy = row["last_accuracy"]
        assert [float(line[f"last_accuracy {kind}"]) for kind in ("mean", "std", "seed 0", "seed 1")] == [
            accuracy["mean"],
            accuracy["std"],
            *accuracy["values"],
        ]
        (printed,) = [entry for entry in text.splitlines() if f" {row['label']} " in entry]
        assert f"{accuracy['mean']:.1f} ± {accuracy['std']:.1f}" in printed
    assert min(imread(folder / "ablation.png").shape[:2]) > 400


def test_it_goes_on_where_it_was_stopped(
    config: RunConfig, done: tuple[Path, dict[str, Any]], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, calls = ablation.measure, list[tuple[int, list[str]]]()

    def stopping(context: Any, methods: list[str]) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append((context.seed, methods))
        return measure(context, methods)

    monkeypatch.setattr(ablation, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        Ablation(config, tmp_path / "stopped", parts=PARTS, cache_dir=cache).run()
    assert not (tmp_path / "stopped" / "ablation.json").exists()
    first = list(calls)
    calls.clear()
    monkeypatch.setattr(
        ablation, "measure", lambda context, methods: calls.append((context.seed, methods)) or measure(context, methods)
    )
    again = Ablation(config, tmp_path / "stopped", parts=PARTS, cache_dir=cache).run()
    # One learner per threshold and seed, the first with the methods that only look at it; none is measured twice.
    assert first[0] == (0, ["artsy", "synapses", "random", "oracle"])
    assert len(first) + len(calls) == 2 * 3
    assert [call for call in calls if call[0] == 0] == [(0, ["artsy"])]
    timeless = [
        {name: {key: row[key] for key in ("last_accuracy", "synapses", "parameters")} for name, row in found.items()}
        for found in (again["rows"], done[1]["rows"])
    ]
    assert timeless[0] == timeless[1]


def test_more_seeds_take_what_is_there(
    config: RunConfig, done: tuple[Path, dict[str, Any]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, results = done
    seeds = []
    monkeypatch.setattr(Ablation, "_measure", lambda self, seed, features: seeds.append(seed))
    less = Ablation(replace(config, seeds=1), folder, parts=PARTS, cache_dir=cache).run()
    assert less["seeds"] == seeds == [0]
    assert less["rows"]["artsy"]["last_accuracy"]["values"] == results["rows"]["artsy"]["last_accuracy"]["values"][:1]


def test_other_settings_need_overwriting(config: RunConfig, done: tuple[Path, dict[str, Any]], cache: Path) -> None:
    other = replace(config, learner=replace(config.learner, epochs=2))
    with pytest.raises(ValueError, match=r"holds an ablation with epochs 1, got 2"):
        Ablation(other, done[0], cache_dir=cache)
    Ablation(other, done[0], overwrite=True, cache_dir=cache)
    assert (done[0] / "ablation.json").exists()  # nothing is replaced before it runs


def test_what_was_measured_of_something_else_is_not_taken(
    config: RunConfig, done: tuple[Path, dict[str, Any]], cache: Path
) -> None:
    ready = Ablation(config, done[0], parts=PARTS, cache_dir=cache)
    assert ready._found(BASE, 0) is not None
    path = ready._path(BASE, 0)
    kept = path.read_text()
    for text in (kept.replace('"epochs": 1', '"epochs": 2', 1), kept[:-1], "[]"):
        path.write_text(text)
        assert ready._found(BASE, 0) is None
    path.write_text(kept)


def test_bad_input(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parts: 'treshold quantile' is not known; did you mean threshold quantile"):
        Ablation(config, tmp_path / "new" / "er", parts=["treshold quantile"])
    with pytest.raises(ValueError, match="methods: expected none"):
        Ablation(replace(config, methods=("artsy",)), tmp_path / "new" / "er")
    (tmp_path / "other").write_text("")
    with pytest.raises(FileExistsError, match="is not empty and holds no run"):
        Ablation(config, tmp_path, overwrite=True)


def test_a_subnetwork_depends_on_its_settings_alone(tiny_vit: Any, tiny_stream: Any, tiny_config: Any) -> None:
    class Watched:
        def __getattr__(self, name: str) -> Any:
            read.add(name)
            return getattr(config, name)

    read: set[str] = set()
    task = tiny_stream.tasks[0]
    for kind in ("shift", "crop", "none"):
        config = replace(tiny_config, augmentation=kind, epochs=1)
        train_subnetwork(
            RoutedViT(tiny_vit), task.train, torch.tensor(task.classes), Watched(), seed=0, task=0,  # type: ignore[arg-type]
            progress=Progress.silent(),
        )  # fmt: skip
    assert read == set(SUBNETWORK_SETTINGS)
