"""Every setting of a run, in one place: `LearnerConfig` for the learner and its baselines, `RunConfig` for the rest.

The command's options, the TOML files that it reads and writes, and their checks are made from these two classes.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["SUBNETWORK_SETTINGS", "LearnerConfig", "RunConfig", "Setting", "read_toml", "settings"]


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of `ArtsyClassifier` and the methods; the defaults are those of the demo.

    The thresholds of silence were chosen on a held-out quarter of the demo's training data (stream `digits`, seeds 0 to
    2), so that about 30 % of the synapses are silent. The others come from earlier experiments on that stream.

    Raises:
        ValueError: a setting is out of its range.
    """

    # Sub-networks (and the adapters of the baselines)
    rank: int = _setting(16, "R, the adapters' bottleneck.")
    scale: float = _setting(0.3, "Factor of the adapters' outputs.")
    epochs: int = _setting(20, "Passes over a task's images.")
    batch_size: int = _setting(32, "Images per training step.")
    learning_rate: float = _setting(2e-2, "Of AdamW, with cosine decay to 0.")
    baseline_learning_rate: float = _setting(1e-2, "The same for finetune and joint.")
    weight_decay: float = _setting(1e-4, "Of AdamW.")
    augmentation: Literal["shift", "crop", "none"] = _setting(
        "shift", "Of training images: shifted at random; or cropped, resized and mirrored at random; or none."
    )
    shift: int = _setting(2, "Shifts are of up to so many pixels.")
    crop: float = _setting(0.25, "Crops keep at least this share of an image's area.")
    head_scale: float = _setting(16.0, "Factor of the cosines in the training head and in predict_proba.")

    # Synapses
    whitening_shrinkage: float = _setting(0.05, "Share of the mean variance in the covariance that whitens features.")
    quantile: float = _setting(0.02, "q: thresholds are the q-quantile of a task's own scores.")
    held_out: float = _setting(0.2, "Share of a new task's samples that set its threshold.")
    calibration_samples: int = _setting(200, "Pseudo-samples per class that set an older threshold anew.")
    fallback: Literal["top", "none"] = _setting(
        "top", "Where no score reaches its threshold: the highest is functional, or none is."
    )
    stdp_steps: int = _setting(8, "T, time steps of spikes.")
    stdp_rate: float = _setting(0.2, "η, the synapses' learning rate.")
    stdp_epochs: int = _setting(5, "Passes of the synapses over a task's features.")
    stdp_batch_size: int = _setting(32, "Samples per update of the synapses.")
    consolidate: bool = _setting(True, "STDP synapses below the thresholds are silent: they learn but do not transmit.")
    consolidate_on: float = _setting(0.12, "A synapse becomes functional where its weight reaches this.")
    consolidate_off: float = _setting(0.08, "A synapse becomes silent where its weight is below this.")
    mlp_hidden: int = _setting(32, "Units of a two-layer synapse.")
    mlp_steps: int = _setting(300, "Training steps of the two-layer synapses at each task.")
    mlp_batch_size: int = _setting(64, "New samples per training step of the two-layer synapses.")
    mlp_learning_rate: float = _setting(3e-3, "Of AdamW for the two-layer synapses.")
    mlp_weight_decay: float = _setting(1e-2, "Of AdamW for the two-layer synapses.")

    def __post_init__(self) -> None:
        types = get_type_hints(LearnerConfig)
        for name in types:
            value, least = getattr(self, name), 0 if name == "shift" else 1
            if types[name] is int and value < least:
                raise ValueError(f"LearnerConfig: {name} must be >= {least}, got {value}")
            if types[name] is float and not 0 <= value < math.inf:
                raise ValueError(f"LearnerConfig: {name} must be finite and >= 0, got {value}")
        for name in ("quantile", "held_out", "whitening_shrinkage"):
            if not getattr(self, name) < 1:
                raise ValueError(f"LearnerConfig: {name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"LearnerConfig: crop must be in (0, 1], got {self.crop}")
        for name in ("augmentation", "fallback"):
            known = get_args(types[name])
            if getattr(self, name) not in known:
                words = " or ".join(map(repr, known))
                raise ValueError(f"LearnerConfig: {name} must be {words}, got {getattr(self, name)!r}")
        if not 0 <= self.consolidate_off <= self.consolidate_on:
            raise ValueError(
                "LearnerConfig: consolidate_off and consolidate_on must satisfy 0 <= off <= on, "
                f"got {self.consolidate_off} and {self.consolidate_on}"
            )


SUBNETWORK_SETTINGS = (
    "rank",
    "scale",
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "augmentation",
    "shift",
    "crop",
    "head_scale",
)
"""The settings that a task's sub-network depends on: learners that agree in these can share it."""


@dataclass(frozen=True)
class RunConfig:
    """What decides the results of `artsy train`: data, backbone, tasks, methods, seeds, and the learner's settings.

    Raises:
        ValueError: a setting is out of its range.
    """

    data: str = _setting("digits", "Data set: a name from below, or folder:PATH for folders of images.")
    data_dir: str = _setting("data", "Where data sets of torchvision are, or are downloaded to.")
    backbone: str = _setting("demo", "E0: demo, NAME of a timm ViT, NAME:random, or NAME:FILE.safetensors.")
    tasks: int | None = _setting(None, "Cut the classes into so many tasks.")
    base: int = _setting(0, "Classes of the first task; 0 for as many as the others have.")
    increment: int | None = _setting(None, "Classes of each further task, instead of a number of tasks.")
    sizes: tuple[int, ...] = _setting((), "Classes of each task, a list, instead of these.")
    scenario: Literal["class", "domain"] = _setting(
        "class", "What is asked for: the class, of all so far; or its label alone, in whatever domain it comes."
    )
    domains: tuple[str, ...] = _setting(
        (), "Folders in folder:PATH that hold the same classes in domains of their own."
    )
    class_order: str | None = _setting(None, "File with a class name per line, in the order to learn; else by seed.")
    methods: tuple[str, ...] = _setting((), "Methods to compare; all by default.")
    seeds: int = _setting(1, "Run seeds 0 to N-1.")
    threads: int | None = _setting(None, "CPU threads; by default 1 with the demo's small backbone, else all cores.")
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self) -> None:
        for name in ("seeds", "threads", "tasks", "increment"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.base < 0:
            raise ValueError(f"base: expected at least 0, got {self.base}")
        known = get_args(get_type_hints(RunConfig)["scenario"])
        if self.scenario not in known:
            raise ValueError(f"scenario: expected {' or '.join(known)}, got {self.scenario!r}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RunConfig:
        """From settings by name, those of the learner among them; what is absent or None has its default.

        Raises:
            ValueError: a name is unknown, or a value has the wrong type or range.
        """
        known = settings()
        for name, value in values.items():
            if name not in known:
                nearest = difflib.get_close_matches(name, known)
                suggestion = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
                raise ValueError(f"config: {name!r} is not a setting{suggestion}")
            if value is not None:
                _check_type(name, value, known[name].type)
        given = {name: value for name, value in values.items() if value is not None}
        learner = {f.name: given.pop(f.name) for f in fields(LearnerConfig) if f.name in given}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        return cls(**given, learner=replace(LearnerConfig(), **learner))

    def to_mapping(self, *, learner: bool = True) -> dict[str, Any]:
        """The inverse of `from_mapping`: every setting that is not None; those of the learner only if asked for."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "learner"}
        if learner:
            values |= {f.name: getattr(self.learner, f.name) for f in fields(LearnerConfig)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }

    def to_toml(self) -> str:
        """A file that `read_toml` reads."""
        import tomli_w

        return tomli_w.dumps(self.to_mapping())


class Setting(NamedTuple):
    """A field of `RunConfig` or `LearnerConfig`."""

    type: Any
    default: Any
    help: str


def settings() -> dict[str, Setting]:
    """Every setting of a run by name, those of the learner last."""
    found = {}
    for config in (RunConfig, LearnerConfig):
        types = get_type_hints(config)
        for f in fields(config):
            if f.name != "learner":
                found[f.name] = Setting(types[f.name], f.default, f.metadata["help"])
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Settings by name from a TOML file, for `RunConfig.from_mapping`.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no TOML, a name is unknown, or a value has the wrong type or range.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} is no TOML file: {error}") from None
    RunConfig.from_mapping(values)
    return values


def _check_type(name: str, value: Any, expected: Any) -> None:
    kinds = [kind for kind in get_args(expected) or (expected,) if kind is not type(None)]
    if get_origin(expected) is tuple:
        kind = get_args(expected)[0]
        good = isinstance(value, (list, tuple)) and all(type(v) is kind for v in value)
        words = {str: "a list of strings", int: "a list of whole numbers"}[kind]
    elif get_origin(expected) is Literal:
        good, words = isinstance(value, str), "a string"
    else:
        (kind,) = kinds
        # A whole number will do where any number does; True is an int to Python alone.
        taken = (int, float) if kind is float else (kind,)
        good = isinstance(value, taken) and (kind is bool or not isinstance(value, bool))
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}[kind]
    if not good:
        raise ValueError(f"config: {name} must be {words}, got {value!r}")
