"""The table, the pictures and the run folder: what is in them, and that a folder is never half-written."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_results import example
from matplotlib.image import imread
from rich.console import Console

from artsy_ext.learner import report
from artsy_ext.learner.report import check_output, print_table, write_run

RUN_FILES = ["accuracy.png", "matrix.png", "results.json", "synapses.png"]


# The row of `artsy`, third of the example's methods.
NUMBERS = ["40.0", "40.0", "1.2", "0.80", "0.90", "1.50", "30", "12,345", "1", "1.5", "1,080"]


def printed(results: dict[str, Any], width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_table(results, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, method: str) -> list[str]:
    return next(line for line in text.splitlines() if line.split()[:1] == [method]).split()


def test_table_has_a_row_for_every_method() -> None:
    text = printed(example())
    assert row(text, "artsy") == ["artsy", *NUMBERS]
    assert row(text, "ease") == ["ease", "20.0", "20.0", *NUMBERS[2:6], "–", *NUMBERS[7:]]
    assert row(text, "joint") == ["joint", "60.0", "60.0", "1.2", "–", "–", "–", "–", *NUMBERS[7:]]
    assert "of 5" in text


def test_table_spreads_over_seeds() -> None:
    # Accuracies 40 and 41.
    assert row(printed(example(seeds=2)), "artsy")[1:4] == ["40.5", "±", "0.5"]


def test_table_says_what_the_methods_are() -> None:
    text = printed(example())
    for method in ("finetune", "artsy", "unheard-of"):
        assert f"what {method} is" in text


def test_table_of_one_seed_fits_a_terminal() -> None:
    text = printed(example(), width=80)
    assert row(text, "artsy") == ["artsy", *NUMBERS]


@pytest.mark.parametrize(("tasks", "seeds"), [(1, 1), (5, 3), (10, 1)])
def test_run_folder_holds_results_and_pictures(tmp_path: Path, tasks: int, seeds: int) -> None:
    results = example(tasks, seeds)
    write_run(tmp_path / "run", results)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == RUN_FILES
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    for picture in (tmp_path / "run").glob("*.png"):
        pixels = imread(picture)
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50, f"{picture.name} is nearly blank"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_no_synapses_no_picture_of_them(tmp_path: Path) -> None:
    write_run(tmp_path / "run", example(methods=("finetune", "joint")))
    assert not (tmp_path / "run" / "synapses.png").exists()


def test_pictures_leave_pyplot_alone(tmp_path: Path) -> None:
    from matplotlib import pyplot

    write_run(tmp_path / "run", example())
    assert pyplot.get_fignums() == []


def test_labels_keep_their_distance_and_their_order() -> None:
    heights = report._spaced([90.0, 88.0, 87.0, 40.0, 1.0, 0.0], 4.0, 0.0, 100.0)
    # The first three are spread around their mean; the fourth has room; the last two are kept above 0.
    assert heights == pytest.approx([265 / 3 + 4, 265 / 3, 265 / 3 - 4, 40, 4, 0])
    assert report._spaced([99.0, 99.0], 4.0, 0.0, 100.0) == [100, 96]


def test_extra_writer_adds_to_the_folder(tmp_path: Path) -> None:
    write_run(tmp_path / "run", example(), lambda folder: (folder / "checkpoint").mkdir())
    assert (tmp_path / "run" / "checkpoint").is_dir()


def test_folders_above_are_made(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "b" / "run", example())
    assert (tmp_path / "a" / "b" / "run" / "results.json").exists()


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", example())
    assert (tmp_path / "run" / "results.json").exists()


def failing_writer(folder: Path) -> None:
    assert (folder / "results.json").exists()
    raise RuntimeError("no checkpoint")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no checkpoint"):
        write_run(tmp_path / "run", example(), failing_writer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_earlier_run(tmp_path: Path, error: type[BaseException]) -> None:
    write_run(tmp_path / "run", example(seeds=1))

    def writer(folder: Path) -> None:
        raise error

    with pytest.raises(error):
        write_run(tmp_path / "run", example(seeds=2), writer, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["seeds"] == [0]


def test_a_failure_of_the_last_step_brings_the_earlier_run_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", example(seeds=1))
    rename = Path.rename

    def rename_all_but_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_all_but_new)
    with pytest.raises(OSError, match="disk gone"):
        write_run(tmp_path / "run", example(seeds=2), overwrite=True)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["seeds"] == [0]


def test_an_earlier_run_is_replaced_only_when_asked(tmp_path: Path) -> None:
    write_run(tmp_path / "run", example(seeds=1), lambda folder: (folder / "checkpoint").mkdir())
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        write_run(tmp_path / "run", example(seeds=2))
    write_run(tmp_path / "run", example(seeds=2), overwrite=True)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["seeds"] == [0, 1]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == RUN_FILES
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("content", [None, "[]", "{}", "no json"])
def test_a_folder_that_is_no_run_is_never_replaced(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "thesis.tex").touch()
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(FileExistsError, match="holds no run"):
        write_run(tmp_path, example(), overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("notes")
    with pytest.raises(FileExistsError, match="is a file"):
        write_run(tmp_path / "run", example(), overwrite=True)
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        check_output(tmp_path / "run" / "below")


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match="other than the current one"):
        check_output(Path())


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_strict_json(tmp_path: Path) -> None:
    results = example()
    results["methods"]["artsy"]["forgetting"]["mean"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_run(tmp_path / "run", results)
    assert list(tmp_path.iterdir()) == []
