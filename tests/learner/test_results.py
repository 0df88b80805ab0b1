"""The loop over seeds, methods and tasks, and the record it leaves: layout, schema, determinism.

Methods here are fakes that answer from a table or from PyTorch's random state, so every number can be worked by hand.
"""

import json
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import jsonschema
import pytest
import torch
from torch import Tensor

from artsy_ext.data import Images, Stream, Task
from artsy_ext.learner import experiment
from artsy_ext.learner.config import LearnerConfig
from artsy_ext.learner.experiment import ExperimentResult, run_experiment
from artsy_ext.learner.features import Features
from artsy_ext.learner.methods import Batch, Prediction
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.results import aggregate, metric, schema, to_json, without_times

TASK_COUNT, TEST_SIZE = 3, 300  # 900 test samples: more than one batch of 512


def tiny_stream(seed: int) -> Stream:
    """Three tasks of two classes; the image is its label."""
    tasks = []
    for task in range(TASK_COUNT):
        labels = torch.arange(2 * task, 2 * task + 2).repeat(TEST_SIZE // 2)
        data = Images.of_tensors(labels.float()[:, None, None, None], labels)
        tasks.append(Task((2 * task, 2 * task + 1), data, data))
    return Stream("tiny", tuple(tasks), tuple("abcdef"))


class PixelMean:
    """Stands in for E0."""

    dim = num_tokens = 1
    device = torch.device("cpu")

    def fingerprint(self) -> str:
        return "mean"

    structure = fingerprint

    def embed(self, images: Tensor) -> Tensor:
        return images

    def base_features(self, tokens: Tensor) -> Tensor:
        return tokens.flatten(1).mean(1, keepdim=True)


class FakeContext(NamedTuple):
    stream: Stream
    features: Features
    statistics: object
    config: object
    seed: int
    progress: Progress

    def classifier(self, synapse: str) -> SimpleNamespace:
        return SimpleNamespace(name=f"{synapse} of seed {self.seed}")

    def release(self) -> None:
        pass


class FakeMethod:
    """Knows a label if its task is one of the last two that were learned, and then always takes it for right."""

    uses_h0 = False
    silent_fraction: float | None = 0.25
    training_seconds = 0.5

    calls: ClassVar[list[tuple[str, str, int]]] = []

    def __init__(self, context: FakeContext) -> None:
        self.context = context
        self.learned = 0

    def fit_task(self, task: Task) -> None:
        self.learned += 1
        self.calls.append((type(self).__name__, "fit", len(task.train)))

    def predict(self, batch: Batch) -> Prediction:
        self.calls.append((type(self).__name__, "predict", len(batch.images)))
        labels = torch.where(batch.tasks >= self.learned - 2, batch.images.flatten().long(), -1)
        return Prediction(labels, torch.nn.functional.one_hot(batch.tasks, self.learned).bool())

    def parameters(self) -> dict[str, float]:
        return {"total": 30.0, "per_task": 10.0, "statistics_bytes": 64.0 * (1 + self.context.seed)}


class RandomMethod(FakeMethod):
    """Guesses from PyTorch's global random state; has no sub-networks."""

    silent_fraction = None

    def predict(self, batch: Batch) -> Prediction:
        return Prediction(torch.randint(2 * self.learned, batch.tasks.shape), None)


class Spec:
    def __init__(self, summary: str, build: type[FakeMethod]) -> None:
        self.summary, self.build = summary, build

    def __call__(self, context: FakeContext) -> FakeMethod:
        return self.build(context)


@pytest.fixture(autouse=True)
def fake_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        experiment, "METHODS", {"artsy": Spec("a fake", FakeMethod), "random": Spec("a guess", RandomMethod)}
    )
    monkeypatch.setattr(experiment, "SeedContext", FakeContext)
    FakeMethod.calls.clear()


def run(methods: tuple[str, ...] = ("random", "artsy"), seeds: tuple[int, ...] = (0, 1)) -> ExperimentResult:
    features = Features(PixelMean())  # type: ignore[arg-type]
    return run_experiment(
        tiny_stream,
        features,
        None,
        methods,
        seeds,
        LearnerConfig(),
        Progress.silent(),
    )


def test_metric() -> None:
    assert metric([1.0, 3.0]) == {"mean": 2.0, "std": 1.0, "values": [1.0, 3.0]}
    assert metric([5.0]) == {"mean": 5.0, "std": 0.0, "values": [5.0]}


def test_metric_of_matrices_is_element_by_element() -> None:
    summed = metric([[[1.0, None], [2.0, 8.0]], [[3.0, None], [2.0, 4.0]]])
    assert summed["mean"] == [[2.0, None], [2.0, 6.0]]
    assert summed["std"] == [[1.0, None], [0.0, 2.0]]
    assert summed["values"][1] == [[3.0, None], [2.0, 4.0]]


def test_aggregate_keeps_the_layout() -> None:
    trees = [{"a": 1.0, "b": {"c": 2.0}, "d": None}, {"a": 3.0, "b": {"c": 2.0}, "d": None}]
    assert aggregate(trees) == {"a": metric([1.0, 3.0]), "b": {"c": metric([2.0, 2.0])}, "d": None}


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def described(part: object) -> bool:
    """Whether every field of every object in a schema says what it is."""
    if isinstance(part, list):
        return all(map(described, part))
    if not isinstance(part, dict):
        return True
    if "required" in part and not all("description" in field for field in part["properties"].values()):
        return False
    return all(map(described, part.values()))


def test_schema_describes_every_field() -> None:
    assert described(schema())


def test_results_match_the_schema() -> None:
    jsonschema.validate(run().results, schema(), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("created",), None),
        (("methods", "artsy", "last_accuracy", "mean"), 101),
        (("methods", "artsy", "accuracy_matrix", "values"), [[[100.5]]]),
        (("methods", "artsy", "synapses", "recall", "values"), [1.5]),
        (("methods", "artsy", "synapses", "routing_matrix", "mean"), [[2]]),
        (("methods", "artsy", "forgetting"), 3.0),
        (("methods", "artsy", "unheard_of"), 3.0),
        (("methods",), {}),
    ],
)
def test_schema_refuses(path: tuple[str, ...], value: object) -> None:
    results = run().results
    parent = results
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(results, schema(), cls=jsonschema.Draft202012Validator)


def test_results_of_a_method_worked_by_hand() -> None:
    results = run().results
    method = results["methods"]["artsy"]
    # All right until the third task, when the first of three equal tasks is lost.
    assert method["accuracy_matrix"]["mean"] == [[100, None, None], [100, 100, None], [0, 100, 100]]
    assert method["incremental_accuracy"]["mean"] == pytest.approx([100, 100, 200 / 3])
    assert method["last_accuracy"]["mean"] == pytest.approx(200 / 3)
    assert method["average_accuracy"]["mean"] == pytest.approx((100 + 100 + 200 / 3) / 3)
    assert method["forgetting"]["mean"] == 50
    assert method["backward_transfer"]["mean"] == -50
    synapses = method["synapses"]
    assert [synapses[key]["mean"] for key in ("recall", "precision", "mean_functional")] == [1, 1, 1]
    assert synapses["silent_fraction"]["mean"] == 0.25
    assert synapses["routing_matrix"]["mean"] == torch.eye(TASK_COUNT).tolist()
    assert method["parameters"]["statistics_bytes"] == {"mean": 96, "std": 32, "values": [64, 128]}
    assert method["seconds"]["training"]["values"] == [0.5, 0.5]
    assert method["seconds"]["inference"]["mean"] > 0


def test_results_say_where_they_come_from() -> None:
    results = run().results
    assert results["stream"] == "tiny"
    assert results["seeds"] == [0, 1]
    assert results["versions"]["torch"] == torch.__version__
    assert "consolidate" in results["arguments"]["config"]
    assert list(results["methods"]) == ["random", "artsy"]
    assert results["methods"]["artsy"]["summary"] == "a fake"


def test_methods_without_subnetworks_have_no_synapses() -> None:
    assert run().results["methods"]["random"]["synapses"] is None


def test_silent_fraction_may_be_undefined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeMethod, "silent_fraction", None)
    results = run().results
    assert results["methods"]["artsy"]["synapses"]["silent_fraction"] is None
    jsonschema.validate(results, schema(), cls=jsonschema.Draft202012Validator)


def test_classifier_of_the_first_seed_is_returned() -> None:
    classifier = run(seeds=(3, 4)).classifier
    assert classifier == SimpleNamespace(name="stdp of seed 3", class_names_=list("abcdef"))
    assert run(methods=("random",)).classifier is None


def test_predictions_are_asked_for_in_batches_of_all_tasks_so_far() -> None:
    run(methods=("artsy",), seeds=(0,))
    assert [size for _, what, size in FakeMethod.calls if what == "predict"] == [300, 512, 88, 512, 388]


def test_all_methods_learn_a_task_before_any_learns_the_next() -> None:
    run(methods=("artsy", "random"), seeds=(0,))
    fitted = [name for name, what, _ in FakeMethod.calls if what == "fit"]
    assert fitted == ["FakeMethod", "RandomMethod"] * TASK_COUNT


def test_same_seeds_same_results_times_aside() -> None:
    first, second = run().results, run().results
    first["created"] = "2000-01-01T00:00:00+00:00"
    first["methods"]["artsy"]["seconds"]["inference"]["values"][0] = 1e9
    first["methods"]["artsy"]["images_per_second"]["inference"]["mean"] = 1e9
    assert without_times(first) == without_times(second)
    second["methods"]["artsy"]["last_accuracy"]["mean"] = 0
    assert without_times(first) != without_times(second)


def test_random_state_of_the_caller_is_left_alone() -> None:
    state = torch.get_rng_state()
    run()
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"methods: 'arsty' is not known; did you mean artsy\? \(known: artsy, random\)"
    ):
        run(methods=("random", "arsty"))


@pytest.mark.parametrize("argument", ["methods", "seeds"])
def test_nothing_to_do_is_an_error(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}: expected at least one"):
        run(**{argument: ()})  # type: ignore[arg-type]


def test_repeated_methods_run_once() -> None:
    assert list(run(methods=("artsy", "artsy")).results["methods"]) == ["artsy"]


def test_json_text_gives_the_results_back() -> None:
    results = run().results
    text = to_json(results)
    assert json.loads(text) == results
    assert '"seeds": [0, 1]' in text


def test_json_has_no_infinities() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"loss": [float("inf")]})
