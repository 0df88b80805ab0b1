"""The `artsy` command as a user meets it: output, files, exit codes.

Tests that take the fixture `demo` run real methods on real data; the others stop before anything is trained.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
from PIL import Image

from artsy_ext import info
from artsy_ext.cli import main
from artsy_ext.data import SOURCES
from artsy_ext.learner import run
from artsy_ext.learner.ablation import ROWS
from artsy_ext.learner.config import settings
from artsy_ext.learner.methods import METHODS
from artsy_ext.learner.results import schema, without_times

REAL = ["demo", "--methods", "simplecil,ease,synapses,artsy,oracle"]


class Demo(NamedTuple):
    folder: Path
    output: str
    results: dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own cache is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARTSY_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = artsy(*REAL, "--output", str(folder))
    assert done.returncode == 0, done.stderr
    return Demo(folder, done.stdout, json.loads((folder / "results.json").read_text()))


def artsy(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "artsy_ext.cli", *arguments], capture_output=True, text=True)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command printed."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err.startswith("artsy: error: ")
    return err.removeprefix("artsy: error: ").rstrip()


def test_demo_writes_a_run_folder(demo: Demo) -> None:
    names = {path.name for path in demo.folder.iterdir()}
    pictures = ("accuracy", "matrix", "synapses", "silence", "weights", "spikes")
    assert names == {"results.json", "config.toml", "checkpoint", *(f"{name}.png" for name in pictures)}
    assert any((demo.folder / "checkpoint").iterdir())
    jsonschema.validate(demo.results, schema(), cls=jsonschema.Draft202012Validator)


def test_demo_prints_the_table_and_the_folder(demo: Demo) -> None:
    assert "simplecil" in demo.output
    assert demo.output.splitlines()[-1] == f"written to {demo.folder}"


def test_demo_notes_its_arguments(demo: Demo) -> None:
    assert demo.results["arguments"]["run"] == {
        "data": "digits",
        "data_dir": "data",
        "backbone": "demo",
        "base": 0,
        "sizes": [],
        "scenario": "class",
        "domains": [],
        "seeds": 1,
        "methods": ["simplecil", "ease", "synapses", "artsy", "oracle"],
        "threads": 1,
    }
    assert demo.results["arguments"]["config"]["consolidate"] is True


def test_demo_learns(demo: Demo) -> None:
    methods = demo.results["methods"]
    last = {name: method["last_accuracy"]["mean"] for name, method in methods.items()}
    # Below, the stream would tell nothing; above, not what the methods differ in.
    assert 78 <= last["simplecil"] <= 90
    assert last["ease"] >= last["simplecil"] - 1
    assert last["artsy"] >= max(92, last["ease"] + 3)
    assert last["oracle"] >= 96
    synapses = {name: value["mean"] for name, value in methods["artsy"]["synapses"].items()}
    assert synapses["recall"] >= 0.92
    assert synapses["precision"] >= 0.88
    assert synapses["mean_functional"] <= 1.15
    assert 0.2 <= synapses["silent_fraction"] <= 0.4


def test_demo_gives_the_same_twice(demo: Demo, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert artsy(*REAL, "--output", str(again)).returncode == 0
    assert without_times(json.loads((again / "results.json").read_text())) == without_times(demo.results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--methods", "arsty"], "did you mean artsy"),
        (["demo", "--methods", "artsy,lda,"], "methods: '' is not known"),
        (["demo", "--sizes", "5,5,x"], "'5,5,x' is not a list of whole numbers"),
        (["demo", "--sizes", "5,4"], "sizes: expected numbers of at least 1 that add up to 10, the classes of digits"),
        (["demo", "--scenario", "domain"], "scenario: digits has no domains"),
        (["demo", "--domains", "a,b"], "domains: expected with folder:PATH alone, got a, b with digits"),
        (["demo", "--stream", "digit"], "'digit' is not one of 'digits', 'rotated', 'domains', 'long'"),
        (["demo", "--data", "digits"], "No such option"),
        (["demo", "--seeds", "0"], "seeds: expected at least 1, got 0"),
        (["demo", "--rank", "0"], "rank must be >= 1, got 0"),
        (["demo", "--augmentation", "flip"], "'flip' is not one of"),
        (["train", "--data", "digit"], "data: 'digit' is not known; did you mean digits?"),
        (["train", "--data", "folder:nowhere"], "nowhere"),
        (["train", "--backbone", "vit_tiny_patch16_225"], "backbone: expected demo or a timm ViT"),
        (["train", "--method", "artsy,lad"], "methods: 'lad' is not known; did you mean lda?"),
        (["train", "--tasks", "11"], "got 11 for 10 classes"),
        (["train", "--tasks", "2", "--increment", "2"], "expected either tasks or increment"),
        (["train", "--increment", "2", "--base", "11"], "base: expected 0 to 10"),
        (["train", "--class-order", "nowhere.txt"], "nowhere.txt"),
        (["train", "--config", "nowhere.toml"], "nowhere.toml"),
        (["ablate", "--parts", "threshold"], "parts: 'threshold' is not known; did you mean threshold quantile?"),
        (["ablate", "--methods", "artsy"], "No such option"),
        (["eval", "nowhere"], "nowhere holds no run"),
        (["eval"], "Missing argument 'DIR'"),
        (["predict", "nowhere"], "Missing argument 'IMAGES...'"),
        (["predict", "nowhere", "nothing.png"], "images: there is no file nothing.png"),
        (["report"], "Missing argument 'RUN...'"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["report", "nowhere", "--output", "."], "output: . is a folder, expected a file"),
        (["compare", "nowhere", "nowhere"], "nowhere holds no run"),
        (["demo", "--seeds", "many"], "--seeds"),
        (["demo", "--unheard-of"], "No such option"),
        (["demo", "surplus"], "unexpected extra argument"),
        (["domo"], "No such command"),
        (["info", "--jason"], "No such option"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_unknown_method_names_all_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--methods", "xyz"]) == 2
    assert f"(known: {', '.join(METHODS)})" in error_line(capsys)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_folder_in_use_is_refused_before_training(
    overwrite: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_experiment", None)
    (tmp_path / "thesis.tex").touch()
    assert main(["demo", "--output", str(tmp_path), *overwrite]) == 2
    assert "not empty" in error_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_exit_code_of_the_process() -> None:
    done = artsy("demo", "--methods", "arsty")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_interrupt_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_experiment", interrupted)
    assert main(["demo", "--output", str(tmp_path / "run")]) == 130
    assert capsys.readouterr() == ("", "artsy: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_settings_and_options_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text("methods = ['simplecil', 'lda']\nseeds = 2\nincrement = 5\nscale = 1\n")
    arguments = ["--config", str(tmp_path / "run.toml"), "--seeds", "1", "--no-consolidate"]
    assert main(["train", *arguments, "--output", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["seeds"] == [0]
    assert list(results["methods"]) == ["simplecil", "lda"]
    assert len(results["methods"]["lda"]["incremental_accuracy"]["mean"]) == 2
    assert results["arguments"]["config"]["scale"] == 1
    assert results["arguments"]["config"]["consolidate"] is False


@pytest.mark.parametrize("content", ["rnak = 3", "rank = '3'", "rank ="])
def test_a_bad_file_of_settings(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(content)
    assert main(["train", "--config", "run.toml"]) == 2
    assert error_line(capsys).startswith("config: ")
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_eval_prints_a_row_for_every_task(demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(demo.folder), "--cache-dir", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()]
    last = demo.results["methods"]["artsy"]["last_accuracy"]["mean"]
    assert [row[0] for row in rows[-6:-1]] == ["1", "2", "3", "4", "5"]
    assert rows[-1][:4] == ["all", "10", "classes", f"{last:.1f}"]


def test_predict_prints_a_row_for_every_image(demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value in (0, 255):
        Image.new("L", (28, 28), value).save(tmp_path / f"{value}.png")
    assert main(["predict", str(demo.folder), str(tmp_path)]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["image"] for row in rows] == [str(tmp_path / "0.png"), str(tmp_path / "255.png")]
    assert all(row["class"] in map(str, range(10)) and 0 < float(row["probability"]) <= 1 for row in rows)
    assert all(row["functional"] in map(str, range(1, 6)) for row in rows)
    assert main(["predict", str(demo.folder), str(tmp_path), "--json"]) == 0
    assert [answer["class"] for answer in json.loads(capsys.readouterr().out)] == [row["class"] for row in rows]


def test_report_writes_one_page_and_replaces_it_only_when_asked(
    demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pages" / "page.html"
    command = ["report", str(demo.folder), "--output", str(page)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"written to {page}\n"
    assert "5 tasks, seed 0" in page.read_text()
    page.write_text("mine")
    assert main(command) == 2
    assert "replaced only with --overwrite" in error_line(capsys)
    assert page.read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    assert page.read_text() != "mine"


def test_compare_shows_that_a_run_is_itself(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(demo.folder), str(demo.folder)]) == 0
    assert capsys.readouterr().out == "The numbers are the same, times aside.\n"
    assert main(["compare", str(demo.folder), str(demo.folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is True
    assert found["methods"]["artsy"]["last_accuracy"]["difference"]["mean"] == 0


@pytest.mark.parametrize("package", ["click", "rich", "timm", "matplotlib"])
def test_a_missing_extra_is_named(package: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from artsy_ext.cli import main; sys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"artsy: error: {package} is not installed: pip install 'artsy_ext[learn]'\n"


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    for command in ("demo", "train", "ablate", "eval", "predict", "report", "compare", "info"):
        assert f"\n  {command} " in out
    assert err == ""


@pytest.mark.parametrize("command", ["demo", "train"])
def test_help_lists_data_methods_and_settings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    for name in (*SOURCES, *METHODS):
        assert f"\n  {name} " in out
    for name in settings():
        option = "--stream" if (command, name) == ("demo", "data") else f"--{name.replace('_', '-')}"
        assert option in out


def test_help_lists_what_an_ablation_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for row in ROWS:
        assert f"{row.part} {row.label}" in out
    assert "--methods" not in out


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from artsy_ext.cli import main; main(['--help'])\n"
        "assert not {'torch', 'timm', 'matplotlib', 'rich'} & sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert info.versions()["artsy_ext"] in capsys.readouterr().out


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for name in ("torch", "python", "processor", "library", "cuda ops", "cpu"):
        assert f"\n{name} " in out


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(json.dumps(info.collect(), default=str))
    assert shown["versions"]["torch"]


def test_info_is_a_module_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"]["cpu"]["threads"] >= 1
    assert info.main(["--jason"]) == 2
    assert capsys.readouterr().err == "artsy_ext.info: error: expected nothing or --json, got --jason\n"


def test_info_names_what_is_missing_and_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = info._version
    monkeypatch.setattr(info, "_version", lambda name: None if name in ("timm", "rich") else installed(name))
    assert {"timm", "rich"} <= set(info.missing_packages()["learn"])
    info.print_info()
    out = capsys.readouterr().out
    assert "timm" in out
    assert "pip install 'artsy_ext[learn]'" in out
