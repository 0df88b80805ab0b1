"""Settings: their ranges, and that TOML, mappings and configurations say the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artsy_ext.learner.config import LearnerConfig, RunConfig, read_toml, settings

CHANGED = RunConfig(
    data="folder:/some where/näh",
    sizes=(3, 1, 2),
    scenario="domain",
    domains=("photos", "sketches"),
    class_order="order.txt",
    methods=("artsy", "lda"),
    seeds=2,
    threads=4,
    learner=LearnerConfig(rank=4, learning_rate=1e-5, consolidate=False, augmentation="crop"),
)


@pytest.mark.parametrize("config", [RunConfig(), CHANGED])
def test_toml_and_back(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert RunConfig.from_mapping(read_toml(tmp_path / "config.toml")) == config


def test_a_file_need_not_say_everything(tmp_path: Path) -> None:
    (tmp_path / "some.toml").write_text("rank = 3\nscale = 1\nmethods = ['lda']\n")
    expected = RunConfig(methods=("lda",), learner=LearnerConfig(rank=3, scale=1))
    assert RunConfig.from_mapping(read_toml(tmp_path / "some.toml")) == expected


def test_mapping_without_the_learner() -> None:
    own, everything = CHANGED.to_mapping(learner=False), CHANGED.to_mapping()
    assert own["methods"] == ["artsy", "lda"]
    assert everything["rank"] == 4
    assert "rank" not in own
    assert "increment" not in own
    assert own.items() <= everything.items()


def test_every_setting_says_what_it_is() -> None:
    for name, setting in settings().items():
        assert setting.help.endswith("."), name
    assert {"data", "tasks", "rank", "quantile"} <= settings().keys()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rnak": 3}, "config: 'rnak' is not a setting; did you mean rank"),
        ({"rank": "3"}, "config: rank must be a whole number, got '3'"),
        ({"rank": 3.0}, "config: rank must be a whole number, got 3.0"),
        ({"rank": True}, "config: rank must be a whole number, got True"),
        ({"scale": "x"}, "config: scale must be a number, got 'x'"),
        ({"consolidate": 1}, "config: consolidate must be true or false, got 1"),
        ({"data": 1}, "config: data must be a string, got 1"),
        ({"methods": "lda"}, "config: methods must be a list of strings, got 'lda'"),
        ({"methods": [1]}, r"config: methods must be a list of strings, got \[1\]"),
        ({"sizes": ["1"]}, r"config: sizes must be a list of whole numbers, got \['1'\]"),
        ({"sizes": [True]}, r"config: sizes must be a list of whole numbers, got \[True\]"),
        ({"scenario": "new"}, "scenario: expected class or domain, got 'new'"),
        ({"fallback": 1}, "config: fallback must be a string, got 1"),
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"tasks": 0}, "tasks: expected at least 1, got 0"),
        ({"increment": -1}, "increment: expected at least 1, got -1"),
        ({"base": -1}, "base: expected at least 0, got -1"),
    ],
)
def test_refused_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        RunConfig.from_mapping(values)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rank", 0, "rank must be >= 1, got 0"),
        ("learning_rate", -1.0, r"learning_rate must be finite and >= 0, got -1\.0"),
        ("learning_rate", float("nan"), "learning_rate must be finite and >= 0, got nan"),
        ("scale", float("inf"), "scale must be finite and >= 0, got inf"),
        ("held_out", 1.0, r"held_out must be in \[0, 1\), got 1\.0"),
        ("shift", -1, "shift must be >= 0, got -1"),
        ("quantile", 1.0, r"quantile must be in \[0, 1\), got 1\.0"),
        ("crop", 0.0, r"crop must be in \(0, 1\], got 0\.0"),
        ("fallback", "all", "fallback must be 'top' or 'none', got 'all'"),
        ("augmentation", "flip", "augmentation must be 'shift' or 'crop' or 'none', got 'flip'"),
        ("consolidate_off", 1.0, "consolidate_off and consolidate_on must satisfy 0 <= off <= on"),
    ],
)
def test_refused_learner_settings(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^LearnerConfig: {expected}"):
        replace(LearnerConfig(), **{name: value})


@pytest.mark.parametrize("content", [b"rank = ", b"\xff\xfe"])
def test_no_toml(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"^config: .*x\.toml is no TOML file: "):
        read_toml(tmp_path / "x.toml")
