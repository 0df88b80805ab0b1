"""The methods by name, run as a run does it: all learn a task, then all are asked, and share what they train.

The controls are compared with their formulas on hand-made features: `HandMade` stands in for E0 and its sub-networks,
and an "image" is the features that they would have.
"""

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from artsy_ext.data import Images, Stream, Task
from artsy_ext.learner import METHODS, Features, LearnerConfig, SeedContext, methods
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.training import new_bank, own_features
from artsy_ext.nn import RoutedViT
from artsy_ext.ops import Routes

CLASSIFIERS = ("artsy", "artsy-mlp", "oracle", "random", "synapses")


def context_of(stream: Stream, vit: nn.Module, config: LearnerConfig, statistics: Any = None) -> SeedContext:
    return SeedContext(stream, Features(RoutedViT(vit)), statistics, config, 0, Progress.silent())


def batch(context: SeedContext, images: Tensor, tasks: Tensor) -> methods.Batch:
    with torch.no_grad():
        return methods.Batch(images, context.vit.base_features(context.vit.embed(images)), tasks)


def run(context: SeedContext, names: Sequence[str]) -> SimpleNamespace:
    """Fits and asks the methods; `predictions[name][t]` is for the test samples of tasks 0 to t."""
    stream = context.stream
    images, labels = (torch.cat(parts) for parts in zip(*(t.test.tensors for t in stream.tasks), strict=True))
    sizes = [len(task.test) for task in stream.tasks]
    tasks = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    made = {name: METHODS[name](context) for name in names}
    predictions: dict[str, list[methods.Prediction]] = {name: [] for name in names}
    for t, task in enumerate(stream.tasks):
        seen = sum(sizes[: t + 1])
        for name, method in made.items():
            method.fit_task(task)
            predictions[name].append(method.predict(batch(context, images[:seen], tasks[:seen])))
    return SimpleNamespace(
        methods=made, predictions=predictions, images=images, labels=labels, tasks=tasks, sizes=sizes, context=context
    )


@pytest.fixture(scope="module")
def fast(tiny_config: LearnerConfig) -> LearnerConfig:
    return dataclasses.replace(tiny_config, epochs=1)


@pytest.fixture(scope="module")
def everything(tiny_vit: VisionTransformer, fast: LearnerConfig, tiny_stream: Stream) -> SimpleNamespace:
    """One run of all methods, and how often a sub-network was trained for it."""
    trained: list[int] = []
    train = methods.train_subnetwork

    def counted(*args: Any, **kwargs: Any) -> Any:
        trained.append(kwargs["task"])
        return train(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "train_subnetwork", counted)
        result = run(context_of(tiny_stream, tiny_vit, fast), list(METHODS))
    result.trained = trained
    return result


def test_the_methods_of_the_table() -> None:
    assert set(METHODS) == {
        "artsy",
        "artsy-mlp",
        "ease",
        "finetune",
        "joint",
        "lda",
        "oracle",
        "random",
        "simplecil",
        "synapses",
    }
    assert all(method.summary and "\n" not in method.summary for method in METHODS.values())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_task_by_task(name: str, everything: SimpleNamespace, tiny_stream: Stream) -> None:
    for t, prediction in enumerate(everything.predictions[name]):
        seen = sum(everything.sizes[: t + 1])
        assert (prediction.labels.shape, prediction.labels.dtype) == ((seen,), torch.int64)
        assert prediction.labels.min() >= 0
        assert prediction.labels.max() <= tiny_stream.tasks[t].classes[-1]
        if prediction.mask is not None:
            assert (prediction.mask.shape, prediction.mask.dtype) == ((seen, t + 1), torch.bool)
    has_subnetworks = name in ("artsy", "artsy-mlp", "oracle", "random", "ease")
    assert all((prediction.mask is not None) == has_subnetworks for prediction in everything.predictions[name])
    assert everything.methods[name].training_seconds > 0


@pytest.mark.parametrize("name", ["artsy", "artsy-mlp", "ease", "joint", "lda", "oracle", "simplecil", "synapses"])
def test_what_can_be_learned_is_learned(name: str, everything: SimpleNamespace) -> None:
    # A sixth is right by chance; random sub-networks and one adapter trained on task after task don't get far.
    right = (everything.predictions[name][-1].labels == everything.labels).float().mean()
    assert right > (0.4 if name == "joint" else 0.7)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_answers_the_same_alone(
    name: str, everything: SimpleNamespace, tiny_vit: VisionTransformer, fast: LearnerConfig, tiny_stream: Stream
) -> None:
    # Neither what other methods draw and train nor the global random state has an influence.
    torch.manual_seed(17)
    alone = run(context_of(tiny_stream, tiny_vit, fast), [name])
    for found, expected in zip(alone.predictions[name], everything.predictions[name], strict=True):
        assert torch.equal(found.labels, expected.labels)
        assert (found.mask is None) == (expected.mask is None)
        assert found.mask is None or torch.equal(found.mask, expected.mask)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"oracle", "random"}))
def test_only_the_oracle_looks_at_the_true_tasks(name: str, everything: SimpleNamespace) -> None:
    wrong = everything.tasks.flip(0)
    labels = everything.methods[name].predict(batch(everything.context, everything.images, wrong)).labels
    assert torch.equal(labels, everything.predictions[name][-1].labels)


def test_what_is_shared_is_trained_once(everything: SimpleNamespace) -> None:
    assert everything.trained == [0, 1, 2]
    classifiers = {name: everything.methods[name].classifier for name in CLASSIFIERS}
    stdp = everything.context.classifier("stdp")
    assert all(classifiers[name] is stdp for name in CLASSIFIERS if name != "artsy-mlp")
    assert classifiers["artsy-mlp"] is everything.context.classifier("mlp")
    mine, theirs = stdp.network_.bank, classifiers["artsy-mlp"].network_.bank
    for other in (theirs, everything.methods["ease"].bank):
        torch.testing.assert_close(other.state_dict(), mine.state_dict(), rtol=0, atol=0)


def test_training_seconds_count_what_is_shared(everything: SimpleNamespace) -> None:
    context, made = everything.context, everything.methods
    stdp, mlp = (context.classifier(kind).seconds_ for kind in ("stdp", "mlp"))
    # Each counts E0's features and the sub-networks in full, whoever asked first.
    h0 = sum(context.features.seconds(task.train) for task in context.stream.tasks)
    assert stdp["features"] == mlp["features"] == 0
    assert stdp["subnetworks"] == mlp["subnetworks"] > 0
    assert made["artsy"].training_seconds == made["oracle"].training_seconds == pytest.approx(h0 + sum(stdp.values()))
    assert made["synapses"].training_seconds == pytest.approx(h0 + stdp["synapses"])
    assert made["artsy-mlp"].training_seconds == pytest.approx(h0 + sum(mlp.values()))
    assert made["ease"].training_seconds > h0 + stdp["subnetworks"]


def test_silent_fraction(everything: SimpleNamespace) -> None:
    fractions = {name: method.silent_fraction for name, method in everything.methods.items()}
    silent = everything.context.classifier("stdp").network_.synapses.silent_fraction
    assert 0 < silent < 1
    for name, fraction in fractions.items():
        assert fraction == (silent if name in ("artsy", "synapses") else None)


# By hand: D = 16, 2 blocks, R = 4, tasks of 2, 3 and 1 classes; 4 bytes a number.
SUBNETWORK = 2 * (16 * 4 + 4 + 4 * 16 + 16)
STDP_WEIGHTS = 6 * 33  # a unit per class, ON and OFF afferents and the bias
GATES = 3 * (16 * 8 + 8 + 8 + 1)
GAUSSIANS = 4 * (6 * 16 + 6 * 16 * 16 + 16 + 16 * 16)  # and the whitening, here from the first task
PROTOTYPES = 4 * (6 * 16 + 6 * 16)  # of each class in E0's space and in its own sub-network's
CENTRE = 4 * 16  # the first task's mean, as nothing is known of the pre-training data
ALL_PROTOTYPES = 4 * (6 * 16 + 3 * 6 * 16)  # in every space
ONE_ADAPTER = SUBNETWORK + 6 * (16 + 1)


@pytest.mark.parametrize(
    ("name", "total", "statistics_bytes"),
    [
        ("artsy", 3 * SUBNETWORK + STDP_WEIGHTS, GAUSSIANS + PROTOTYPES),
        ("oracle", 3 * SUBNETWORK + STDP_WEIGHTS, GAUSSIANS + PROTOTYPES),
        ("random", 3 * SUBNETWORK + STDP_WEIGHTS, GAUSSIANS + PROTOTYPES),
        ("artsy-mlp", 3 * SUBNETWORK + GATES, GAUSSIANS + PROTOTYPES),
        ("synapses", STDP_WEIGHTS, GAUSSIANS),
        ("ease", 3 * SUBNETWORK, ALL_PROTOTYPES + CENTRE),
        ("simplecil", 0, 4 * 6 * 16 + CENTRE),
        ("lda", 0, 4 * (6 * 16 + 16 * 16)),
        ("finetune", ONE_ADAPTER, 0),
        ("joint", ONE_ADAPTER, 0),
    ],
)
def test_parameters_by_hand(name: str, total: int, statistics_bytes: int, everything: SimpleNamespace) -> None:
    parameters = everything.methods[name].parameters()
    assert parameters == {"total": total, "per_task": total / 3, "statistics_bytes": statistics_bytes}


# Artsy and those that look at its classifier in another way


def test_artsy_is_the_classifier(everything: SimpleNamespace) -> None:
    for name, kind in (("artsy", "stdp"), ("artsy-mlp", "mlp")):
        classifier, prediction = everything.context.classifier(kind), everything.predictions[name][-1]
        assert torch.equal(prediction.mask, classifier.synapse_mask(everything.images))
        assert torch.equal(prediction.labels, classifier.predict(everything.images))


def test_the_oracle_runs_the_true_subnetwork(everything: SimpleNamespace) -> None:
    for t, prediction in enumerate(everything.predictions["oracle"]):
        seen = sum(everything.sizes[: t + 1])
        assert torch.equal(prediction.mask, F.one_hot(everything.tasks[:seen], t + 1).bool())
    task_of_class = torch.tensor([0, 0, 1, 1, 1, 2])
    assert torch.equal(task_of_class[everything.predictions["oracle"][-1].labels], everything.tasks)


def test_ease_runs_every_subnetwork(everything: SimpleNamespace) -> None:
    assert all(prediction.mask.all() for prediction in everything.predictions["ease"])


@pytest.mark.parametrize(("fraction", "counts"), [(0.25, {1, 2}), (0.0, {1}), (1.0, {2})])
def test_random_runs_as_many_as_artsy(
    fraction: float, counts: set[int], everything: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Artsy runs two for this fraction of the samples and one for the others.
    method, B = everything.methods["random"], 400
    functional = torch.tensor([[False, False, True]]).repeat(B, 1)
    functional[: int(fraction * B), 1] = True
    monkeypatch.setattr(method.classifier.network_, "functional", lambda h0: functional)
    images = everything.images[:1].expand(B, -1, -1, -1)
    mask = method.predict(batch(everything.context, images, torch.zeros(B, dtype=torch.int64))).mask
    assert set(mask.sum(1).tolist()) == counts
    # Four standard errors of a share among 400.
    assert mask.sum(1).float().mean().item() == pytest.approx(1 + fraction, abs=4 * 0.5 / B**0.5)
    torch.testing.assert_close(
        mask.float().mean(0), torch.full((3,), (1 + fraction) / 3), atol=4 * 0.5 / B**0.5, rtol=0
    )


def test_synapses_answer_without_a_subnetwork(everything: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    network = everything.context.classifier("stdp").network_

    def run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a sub-network runs")

    monkeypatch.setattr(type(network.vit), "subnetwork_features", run)
    prediction = everything.methods["synapses"].predict(batch(everything.context, everything.images, everything.tasks))
    z = network.whitening(network.vit.base_features(network.vit.embed(everything.images)))
    assert prediction.mask is None
    assert torch.equal(prediction.labels, network.synapses.classify(z))


# One adapter


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What the training loop was given, and the head before and after."""
    calls: list[SimpleNamespace] = []
    train = methods.train_adapter

    def recorded(vit: Any, bank: Any, head: Any, dataset: Any, *args: Any, **kwargs: Any) -> None:
        call = SimpleNamespace(labels=torch.tensor([int(y) for _, y in dataset]), rate=kwargs["learning_rate"])
        call.start = {name: value.clone() for name, value in {**head.state_dict(), **bank.state_dict()}.items()}
        train(vit, bank, head, dataset, *args, **kwargs)
        call.end = {name: value.clone() for name, value in {**head.state_dict(), **bank.state_dict()}.items()}
        calls.append(call)

    monkeypatch.setattr(methods, "train_adapter", recorded)
    return calls


def test_finetune_goes_on_with_a_wider_head(
    lessons: list[SimpleNamespace], tiny_vit: VisionTransformer, fast: LearnerConfig, tiny_stream: Stream
) -> None:
    run(context_of(tiny_stream, tiny_vit, fast), ["finetune"])
    assert [lesson.labels.unique().tolist() for lesson in lessons] == [[0, 1], [2, 3, 4], [5]]
    assert {lesson.rate for lesson in lessons} == {fast.baseline_learning_rate}
    for before, after, old, new in zip(lessons, lessons[1:], (2, 5), (5, 6), strict=False):
        for name, value in after.start.items():
            kept = value[:old] if name in ("weight", "bias") else value
            assert torch.equal(kept, before.end[name])
        assert after.start["weight"].shape == (new, 16)
        assert (after.start["weight"][old:] != 0).all()
        assert (after.start["bias"][old:] == 0).all()


def test_joint_is_trained_once_on_all_tasks(
    lessons: list[SimpleNamespace], tiny_vit: VisionTransformer, fast: LearnerConfig, tiny_stream: Stream
) -> None:
    result = run(context_of(tiny_stream, tiny_vit, fast), ["joint"])
    (lesson,) = lessons
    everything = torch.cat([task.train.tensors[1] for task in tiny_stream.tasks])
    assert torch.equal(lesson.labels.sort().values, everything.sort().values)
    assert lesson.rate == fast.baseline_learning_rate
    assert lesson.start["weight"].shape == (6, 16)
    assert (lesson.start["blocks.0.up"] == 0).all()  # as a new adapter
    # The same network answers after each task, among the classes seen until then.
    method = result.methods["joint"]
    logits = method.head(own_features(method.vit, method.bank, result.images))
    for t, prediction in enumerate(result.predictions["joint"]):
        seen = len(prediction.labels)
        assert torch.equal(prediction.labels, logits[:seen, : tiny_stream.tasks[t].classes[-1] + 1].argmax(1))


# Hand-made features


class HandMade(nn.Module):
    """Takes [n, 1 + S, D] for images: E0's features, then those of each sub-network."""

    depth = 1
    num_tokens = 1
    device = torch.device("cpu")

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def fingerprint(self) -> str:
        return "hand-made"

    structure = fingerprint

    def embed(self, images: Tensor) -> Tensor:
        return images

    def base_features(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]

    def subnetwork_features(self, tokens: Tensor, bank: Any, routes: Routes) -> Tensor:
        return tokens[routes.sample, 1 + routes.subnetwork]


@pytest.fixture
def by_hand(tiny_vit: VisionTransformer, tiny_stream: Stream) -> Callable[..., SeedContext]:
    """by_hand(dim, statistics=None): a context whose E0 and sub-networks are hand-made."""

    def make(dim: int, statistics: Any = None) -> SeedContext:
        features = Features(HandMade(dim))  # type: ignore[arg-type]
        context = SeedContext(tiny_stream, features, statistics, LearnerConfig(rank=2), 0, Progress.silent())
        bank = new_bank(context.vit, context.config, 1)
        context.subnetwork = lambda *_: (bank, 1.0)  # type: ignore[method-assign, assignment]
        return context

    return make


def task_of(classes: Sequence[int], features: Tensor, labels: Tensor) -> Task:
    data = Images.of_tensors(features, labels)
    return Task(tuple(classes), data, data)


def asked(method: Any, features: Tensor) -> list[int]:
    tasks = torch.zeros(len(features), dtype=torch.int64)
    labels: list[int] = method.predict(batch(method.context, features, tasks)).labels.tolist()
    return labels


@pytest.mark.parametrize("given", [False, True], ids=["first task's mean", "mean given"])
def test_simplecil_by_hand(given: bool, by_hand: Callable[..., SeedContext]) -> None:
    # Seen from (1, 1), which is also the mean of the first task's features.
    method = METHODS["simplecil"](by_hand(2, (torch.tensor([1.0, 1.0]), torch.eye(2)) if given else None))
    h0 = torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 3.0], [1.0, -1.0]])  # east, west, north, south
    method.fit_task(task_of((0, 1, 2, 3), h0[:, None], torch.arange(4)))
    assert asked(method, torch.tensor([[[9.0, 2.0]], [[-1.0, 2.5]], [[1.1, 1.5]], [[1.5, 0.0]]])) == [0, 1, 2, 3]
    # Mean direction of (0.6, 0.8) and (0.8, 0.6): north-east, whatever the lengths are.
    north_east = torch.tensor([[1.6, 1.8], [81.0, 61.0]])
    method.fit_task(task_of((4,), north_east[:, None], torch.tensor([4, 4])))
    # The border to the east is at 22.5°.
    assert asked(method, torch.tensor([[[2.0, 1.45]], [[2.0, 1.38]]])) == [4, 0]


def correlated(n: int, D: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=generator) @ torch.randn(D, D, generator=torch.Generator().manual_seed(5))


def test_lda_is_scikit_learns(by_hand: Callable[..., SeedContext]) -> None:
    D, n = 6, 30
    labels = torch.arange(5).repeat_interleave(n)
    h0 = correlated(5 * n, D, 0) + correlated(5, D, 1)[labels]
    method = METHODS["lda"](by_hand(D))
    for classes in ((0, 1), (2, 3, 4)):
        rows = (labels >= classes[0]) & (labels <= classes[-1])
        method.fit_task(task_of(classes, h0[rows, None], labels[rows]))
    # Theirs divides covariances by n, ours by n − 1, which with classes of one size changes no border.
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-4, priors=[0.2] * 5)
    theirs.fit(h0.double().numpy(), labels.numpy())
    x = correlated(500, D, 2) * 1.5
    assert asked(method, x[:, None]) == theirs.predict(x.double().numpy()).tolist()
    assert len(set(asked(method, x[:, None]))) == 5


def test_lda_by_its_formula_with_classes_of_any_size(by_hand: Callable[..., SeedContext]) -> None:
    D, sizes = 6, (8, 40, 15)
    labels = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    h0 = correlated(len(labels), D, 0) + correlated(3, D, 1)[labels]
    method = METHODS["lda"](by_hand(D))
    for c in range(3):
        method.fit_task(task_of((c,), h0[labels == c, None], labels[labels == c]))
    rows = [h0[labels == c].double() for c in range(3)]
    shared = sum(r.t().cov() for r in rows) / 3
    shared = (1 - 1e-4) * shared + 1e-4 * shared.diagonal().mean() * torch.eye(D, dtype=torch.float64)
    x = correlated(500, D, 2)
    distances = [
        ((x - r.mean(0)) @ torch.linalg.inv(shared) * (x - r.mean(0))).sum(1) for r in rows
    ]  # Mahalanobis, squared
    assert asked(method, x[:, None]) == torch.stack(distances, 1).argmin(1).tolist()


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def ease_in_loops(
    tasks: Sequence[Sequence[int]], features: Tensor, labels: Tensor, mean: Tensor, queries: Tensor
) -> Tensor:
    """[n, C] logits of EASE after these tasks, one class and one space at a time."""
    centred, asked_for = features - mean, queries - mean
    C = sum(map(len, tasks))
    own = {c: t for t, classes in enumerate(tasks) for c in classes}

    def true_prototype(space: int, c: int) -> Tensor:
        return unit(torch.stack([unit(row) for row in centred[labels == c, space]]).mean(0))

    base = {c: true_prototype(0, c) for c in range(C)}
    prototypes: dict[tuple[int, int], Tensor] = {}
    for t, classes in enumerate(tasks):
        # A new class's images pass through all sub-networks there are …
        for s in range(t + 1):
            for c in classes:
                prototypes[s, c] = true_prototype(1 + s, c)
        # … an old class's prototype in the new space is put together from the new classes'.
        for c in (c for c in range(C) if own[c] < t):
            similarity = torch.stack([prototypes[own[c], b] @ prototypes[own[c], c] for b in classes])
            share = (similarity / 0.1).exp() / (similarity / 0.1).exp().sum()
            residual = sum(w * (prototypes[t, b] - base[b]) for w, b in zip(share, classes, strict=True))
            prototypes[t, c] = unit(base[c] + residual)
    logits = torch.zeros(len(queries), C)
    for n, query in enumerate(asked_for):
        for c in range(C):
            logits[n, c] = unit(query[0]) @ base[c]
            for s in range(len(tasks)):
                logits[n, c] += (1.0 if s == own[c] else 0.1) * (unit(query[1 + s]) @ prototypes[s, c])
    return logits


@pytest.mark.parametrize("given", [False, True], ids=["first task's mean", "mean given"])
def test_ease_is_its_formula(given: bool, by_hand: Callable[..., SeedContext], monkeypatch: pytest.MonkeyPatch) -> None:
    D, tasks = 6, ((0, 1), (2, 3, 4), (5,))
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat_interleave(10)
    features = torch.randn(6, 1 + len(tasks), D, generator=generator)[labels]
    features = features + 0.7 * torch.randn(60, 1 + len(tasks), D, generator=generator)
    queries = torch.randn(200, 1 + len(tasks), D, generator=generator)
    mean = torch.randn(D, generator=generator) if given else features[labels < 2, 0].mean(0)
    method: Any = METHODS["ease"](by_hand(D, (mean, torch.eye(D)) if given else None))

    logits: list[Tensor] = []
    forward = methods.PrototypeHead.forward
    monkeypatch.setattr(
        methods.PrototypeHead, "forward", lambda self, *args: logits.append(forward(self, *args)) or logits[-1]
    )
    for t, classes in enumerate(tasks):
        rows = (labels >= classes[0]) & (labels <= classes[-1])
        method.fit_task(task_of(classes, features[rows], labels[rows]))
        predicted = asked(method, queries)
        expected = ease_in_loops(tasks[: t + 1], features, labels, mean, queries)
        torch.testing.assert_close(logits[-1], expected, rtol=1e-4, atol=1e-5)
        assert predicted == expected.argmax(1).tolist()
