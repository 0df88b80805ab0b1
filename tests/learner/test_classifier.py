"""ArtsyClassifier as its user meets it: labels, no forgetting, no image kept, checkpoints, and bad input."""

import copy
import dataclasses
import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from artsy_ext.data import Stream
from artsy_ext.learner import ArtsyClassifier, LearnerConfig
from artsy_ext.nn import MLPSynapses, STDPSynapses, SubNetworkBank, Whitening, within_class_covariance
from artsy_ext.ops import plan_routes

SYNAPSES = ("stdp", "mlp")
LABELS = ((7, 3), (12, 0, 5), (1,))  # not 0 to C − 1, and not in order

BuildVit = Callable[..., VisionTransformer]
MakeData = Callable[..., TensorDataset]


@pytest.fixture(scope="module")
def tasks(make_data: MakeData) -> list[TensorDataset]:
    return [make_data(labels, seed=10 + t) for t, labels in enumerate(LABELS)]


@pytest.fixture(scope="module")
def test_images(make_data: MakeData) -> tuple[Tensor, Tensor]:
    images, labels = make_data([c for task in LABELS for c in task], per_class=10, seed=20).tensors
    return images, labels


@pytest.fixture(scope="module", params=SYNAPSES)
def fitted(
    request: pytest.FixtureRequest, tiny_vit: VisionTransformer, tiny_config: LearnerConfig, tasks: list[TensorDataset]
) -> ArtsyClassifier:
    """All tasks learned; tests leave it as it is."""
    classifier = ArtsyClassifier(tiny_vit, synapse=request.param, config=tiny_config)
    for task in tasks:
        classifier.fit_task(task)
    return classifier


def snapshot(classifier: ArtsyClassifier) -> dict[str, Any]:
    """All that a user can see of what was learned."""
    facts: dict[str, Any] = {
        "classes": list(classifier.classes_),
        "tasks": list(classifier.task_of_class_),
        "seconds": dict(classifier.seconds_),
    }
    if classifier.network_ is not None:
        facts |= {name: value.clone() for name, value in classifier.network_.state_dict().items()}
        facts |= {f"kept {name}": value.clone() for name, value in classifier.statistics_.state_dict().items()}
    return facts


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# What it learns


def test_labels_come_back(fitted: ArtsyClassifier, test_images: tuple[Tensor, Tensor]) -> None:
    images, labels = test_images
    # In the order of learning; within a task sorted.
    assert fitted.classes_ == [3, 7, 0, 5, 12, 1]
    assert fitted.task_of_class_ == [0, 0, 1, 1, 1, 2]
    assert fitted.num_tasks == 3
    predicted = fitted.predict(images)
    assert (predicted.shape, predicted.dtype) == (labels.shape, torch.int64)
    assert (predicted == labels).float().mean() > 0.8


def test_mask_decides_which_classes_are_answered(fitted: ArtsyClassifier, test_images: tuple[Tensor, Tensor]) -> None:
    images, labels = test_images
    own_task = torch.tensor([next(t for t, task in enumerate(LABELS) if y in task) for y in labels.tolist()])
    found = fitted.synapse_mask(images)
    assert (found.shape, found.dtype) == ((len(images), 3), torch.bool)
    assert (found.gather(1, own_task[:, None])).float().mean() > 0.8
    assert_same(fitted.predict(images), fitted.predict(images, mask=found))
    true_mask = torch.nn.functional.one_hot(own_task, 3).bool()
    predicted = fitted.predict(images, mask=true_mask)
    assert all(int(p) in LABELS[t] for p, t in zip(predicted, own_task, strict=True))
    assert (predicted == labels).float().mean() > 0.9


def test_probabilities(fitted: ArtsyClassifier, test_images: tuple[Tensor, Tensor]) -> None:
    images, _ = test_images
    logits, probabilities = fitted.decision_function(images), fitted.predict_proba(images)
    assert probabilities.shape == (len(images), 6)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(images)))
    functional = fitted.synapse_mask(images)[:, fitted.task_of_class_]
    assert torch.equal(probabilities > 0, functional)
    assert torch.equal(logits.isfinite(), functional)
    # The scale is that of the training head.
    torch.testing.assert_close(probabilities, (16.0 * logits).softmax(1))
    assert_same(torch.tensor(fitted.classes_)[probabilities.argmax(1)], fitted.predict(images))
    assert not logits.requires_grad


def test_no_image_to_predict(fitted: ArtsyClassifier, test_images: tuple[Tensor, Tensor]) -> None:
    images = test_images[0][:0]
    assert fitted.predict(images).shape == (0,)
    assert fitted.predict_proba(images).shape == (0, 6)
    assert fitted.synapse_mask(images).shape == (0, 3)


@pytest.mark.parametrize("synapse", SYNAPSES)
def test_what_was_learned_does_not_change(
    synapse: str, build_vit: BuildVit, tiny_config: LearnerConfig, tasks: list[TensorDataset]
) -> None:
    vit = build_vit()
    backbone = {name: value.clone() for name, value in vit.state_dict().items()}
    classifier = ArtsyClassifier(vit, synapse=synapse, config=tiny_config)
    before: list[dict[str, Tensor]] = []
    for t, task in enumerate(tasks):
        classifier.fit_task(task)
        network = classifier.network_
        assert network is not None
        assert network.vit is classifier.vit  # E0 is never copied
        own_classes = torch.tensor(classifier.task_of_class_)
        for earlier in range(t + 1):
            # The weights, features, prototypes and, told the true sub-network, answers for an earlier task's images.
            images, _ = tasks[earlier].tensors
            mask = torch.nn.functional.one_hot(torch.full((len(images),), earlier), t + 1).bool()
            own = own_classes == earlier
            facts = {name: value[earlier].clone() for name, value in network.bank.state_dict().items()}
            facts["features"] = network.vit.subnetwork_features(
                network.vit.embed(images), network.bank, plan_routes(mask)
            )
            facts["prototypes"] = network.head.prototypes[earlier, own]
            facts["base prototypes"] = network.head.base_prototypes[own]
            facts["answers"] = classifier.predict(images, mask=mask)
            facts |= {name: value[own].clone() for name, value in classifier.statistics_.state_dict().items()}
            if earlier == t:
                before.append(facts)
            assert_same(facts, before[earlier])
            assert classifier.decision_function(images, mask=mask)[:, ~own].isneginf().all()
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert_same(dict(vit.state_dict()), backbone)


@pytest.mark.parametrize("synapse", SYNAPSES)
def test_no_image_is_kept(
    synapse: str, tiny_vit: VisionTransformer, tiny_config: LearnerConfig, make_data: MakeData, tmp_path: Path
) -> None:
    sizes = []
    for per_class in (10, 30):
        classifier = ArtsyClassifier(tiny_vit, synapse=synapse, config=tiny_config)
        kept = []
        for labels in LABELS[:2]:
            data = make_data(labels, per_class=per_class)
            classifier.fit_task(data)
            kept += [weakref.ref(data), *map(weakref.ref, data.tensors)]
            del data
        gc.collect()
        assert [reference() for reference in kept] == [None] * len(kept)

        classifier.save(tmp_path / "saved")
        tensors = safetensors.torch.load_file(tmp_path / "saved" / "model.safetensors")
        sizes.append({name: list(value.shape) for name, value in tensors.items()})
    # What is stored is the same from 10 and from 30 images, so none is in it.
    assert sizes[0] == sizes[1]
    C, D, K = 5, 16, 3
    assert sizes[0]["statistics.mean"] == [C, D]
    assert sizes[0]["statistics.covariance"] == [C, D, D]
    assert sizes[0]["network.head.base_prototypes"] == [C, D]
    assert sizes[0]["network.head.prototypes"] == [2, C, D]
    if synapse == "stdp":
        assert sizes[0]["network.synapses.weight"] == [2, K, 2 * D + 1]
    assert not any(name.startswith("network.vit") for name in sizes[0])


def test_whitening_is_by_the_statistics_given_or_by_the_first_task(
    tiny_vit: VisionTransformer, tiny_config: LearnerConfig, tasks: list[TensorDataset]
) -> None:
    mean, sigma = torch.randn(16), torch.diag(torch.rand(16) + 0.5)
    given = ArtsyClassifier(tiny_vit, (mean, sigma), config=tiny_config).fit_task(tasks[0]).network_
    assert given is not None
    for part in (given.whitening, given.head):
        assert_same(part.mean, mean)

    classifier = ArtsyClassifier(tiny_vit, config=tiny_config).fit_task(tasks[0])
    own = classifier.network_
    assert own is not None
    h0 = tiny_vit.forward_features(tasks[0].tensors[0]).mean(1)
    h0 = tiny_vit.fc_norm(h0)
    torch.testing.assert_close(own.whitening.mean, h0.mean(0), rtol=1e-4, atol=1e-4)
    matrix = own.whitening.matrix.clone()
    classifier.fit_task(tasks[1])
    assert classifier.network_ is not None
    assert_same(classifier.network_.whitening.matrix, matrix)


@pytest.mark.parametrize("synapse", SYNAPSES)
def test_settings_reach_the_parts(synapse: str, tiny_vit: VisionTransformer, tasks: list[TensorDataset]) -> None:
    config = LearnerConfig(
        rank=3,
        scale=0.7,
        epochs=1,
        quantile=0.1,
        fallback="none",
        stdp_steps=4,
        stdp_rate=0.3,
        stdp_epochs=1,
        consolidate_on=0.3,
        consolidate_off=0.2,
        stdp_batch_size=9,
        mlp_hidden=5,
        mlp_steps=6,
        mlp_batch_size=7,
        mlp_learning_rate=1e-4,
        mlp_weight_decay=0.5,
        whitening_shrinkage=0.3,
        held_out=0.4,
        calibration_samples=11,
    )
    network = ArtsyClassifier(tiny_vit, synapse=synapse, config=config).fit_task(tasks[0]).network_
    assert network is not None
    assert network.bank.adapters[0].down.shape == (1, 3, 16)
    assert {block.scale for block in network.bank.adapters} == {0.7}
    synapses = network.synapses
    assert (synapses.quantile, synapses.fallback) == (0.1, "none")
    assert (synapses.held_out, synapses.calibration_samples) == (0.4, 11)
    x, y = tasks[0].tensors
    h0 = tiny_vit(x).detach()
    expected = Whitening(h0.mean(0), within_class_covariance(h0, y), 0.3)
    torch.testing.assert_close(network.whitening.matrix, expected.matrix, rtol=1e-3, atol=1e-4)
    if isinstance(synapses, STDPSynapses):
        assert (synapses.steps, synapses.rate, synapses.epochs, synapses.on, synapses.off) == (4, 0.3, 1, 0.3, 0.2)
        assert synapses.batch_size == 9
        without = dataclasses.replace(config, consolidate=False)
        network = ArtsyClassifier(tiny_vit, config=without).fit_task(tasks[0]).network_
        assert network is not None
        assert network.synapses.silent_fraction is None
    else:
        assert isinstance(synapses, MLPSynapses)
        assert (synapses.hidden, synapses.steps, synapses.batch_size) == (5, 6, 7)
        assert (synapses.learning_rate, synapses.weight_decay) == (1e-4, 0.5)


class Plain(Dataset[Any]):
    """Images with labels that are plain numbers, as many data sets of torchvision give them."""

    def __init__(self, data: TensorDataset) -> None:
        self.images, self.labels = data.tensors

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.images[i], int(self.labels[i])


def test_any_map_style_dataset_and_the_same_seed_give_the_same_result(
    tiny_vit: VisionTransformer, tiny_config: LearnerConfig, tasks: list[TensorDataset]
) -> None:
    def learned(seed: int, wrap: Callable[[TensorDataset], Any]) -> dict[str, Any]:
        classifier = ArtsyClassifier(tiny_vit, config=tiny_config, seed=seed)
        for task in tasks[:2]:
            torch.randn(3)  # the global random state has no influence
            assert classifier.fit_task(wrap(task)) is classifier
        return {name: value for name, value in snapshot(classifier).items() if name != "seconds"}

    first = learned(0, lambda data: data)
    assert_same(learned(0, Plain), first)
    other = learned(1, lambda data: data)
    assert not torch.equal(other["synapses.weight"], first["synapses.weight"])
    assert not torch.equal(other["bank.blocks.0.down"], first["bank.blocks.0.down"])


@pytest.mark.parametrize("synapse", SYNAPSES)
def test_the_global_random_state_is_left_alone(
    synapse: str, tiny_vit: VisionTransformer, tiny_config: LearnerConfig, tasks: list[TensorDataset]
) -> None:
    state = torch.get_rng_state()
    classifier = ArtsyClassifier(tiny_vit, synapse=synapse, config=tiny_config)
    for task in tasks[:2]:
        classifier.fit_task(task)
    classifier.predict(tasks[0].tensors[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_subnetworks_may_come_from_elsewhere(
    fitted: ArtsyClassifier, tiny_vit: VisionTransformer, tiny_config: LearnerConfig, tasks: list[TensorDataset]
) -> None:
    asked: list[tuple[Any, list[int], int]] = []

    def bring(dataset: Any, labels: Tensor, task: int) -> tuple[SubNetworkBank, float]:
        asked.append((dataset, labels.tolist(), task))
        bank = SubNetworkBank(2, 16, rank=4, scale=0.3, num_subnetworks=1)
        torch.nn.init.constant_(bank.adapters[0].up_bias, task + 1.0)
        return bank, 100.0

    classifier = ArtsyClassifier(tiny_vit, config=tiny_config, subnetwork_trainer=bring)
    for task in tasks[:2]:
        classifier.fit_task(task)
    assert asked == [(tasks[0], [3, 7], 0), (tasks[1], [0, 5, 12], 1)]
    assert classifier.seconds_["subnetworks"] == 200.0
    assert 0 < classifier.seconds_["synapses"] < 100
    assert 0 < classifier.seconds_["prototypes"] < 100
    assert classifier.network_ is not None
    assert classifier.network_.bank.adapters[0].up_bias[:, 0].tolist() == [1.0, 2.0]


def test_readme_example_on_a_stream(
    tiny_vit: VisionTransformer, tiny_config: LearnerConfig, tiny_stream: Stream
) -> None:
    classifier = ArtsyClassifier(tiny_vit, config=tiny_config)
    for task in tiny_stream.tasks:
        classifier.fit_task(task.train)
    # In stream order, so labels are columns.
    assert classifier.classes_ == list(range(6))
    images, labels = tiny_stream.tasks[1].test.tensors
    assert (classifier.predict(images) == labels).float().mean() > 0.7


# Checkpoints


def test_a_loaded_classifier_predicts_the_same_and_learns_on(
    fitted: ArtsyClassifier,
    build_vit: BuildVit,
    tiny_config: LearnerConfig,
    tasks: list[TensorDataset],
    test_images: tuple[Tensor, Tensor],
    tmp_path: Path,
) -> None:
    images, _ = test_images
    half = ArtsyClassifier(build_vit(), synapse=fitted.synapse, config=tiny_config)
    for task in tasks[:2]:
        half.fit_task(task)
    half.save(tmp_path / "deeper" / "half")
    assert sorted(path.name for path in (tmp_path / "deeper" / "half").iterdir()) == ["model.json", "model.safetensors"]

    loaded = ArtsyClassifier.load(tmp_path / "deeper" / "half", build_vit())
    assert (loaded.classes_, loaded.num_tasks, loaded.synapse) == (half.classes_, 2, fitted.synapse)
    assert (loaded.config, loaded.seed) == (tiny_config, 0)
    assert_same(loaded.decision_function(images), half.decision_function(images))
    assert_same(loaded.predict(images), half.predict(images))
    assert_same(loaded.synapse_mask(images), half.synapse_mask(images))

    loaded.fit_task(tasks[2])
    before, after = snapshot(fitted), snapshot(loaded)
    for facts in (before, after):
        del facts["seconds"]
    assert_same(after, before)
    assert_same(loaded.predict_proba(images), fitted.predict_proba(images))


def test_loading_leaves_the_global_random_state_alone(
    fitted: ArtsyClassifier, tiny_vit: VisionTransformer, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "saved")
    state = torch.get_rng_state()
    ArtsyClassifier.load(str(tmp_path / "saved"), tiny_vit)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_earlier_checkpoint_is_replaced(
    fitted: ArtsyClassifier,
    tiny_vit: VisionTransformer,
    tiny_config: LearnerConfig,
    tasks: list[TensorDataset],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "saved"
    ArtsyClassifier(tiny_vit, config=tiny_config).fit_task(tasks[2]).save(folder)
    fitted.save(folder)
    assert ArtsyClassifier.load(folder, tiny_vit).classes_ == fitted.classes_
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize("failing", ["save_file", "rename", "json"])
def test_a_failed_save_leaves_an_earlier_checkpoint_and_nothing_else(
    failing: str,
    fitted: ArtsyClassifier,
    tiny_vit: VisionTransformer,
    tiny_config: LearnerConfig,
    tasks: list[TensorDataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "saved"
    ArtsyClassifier(tiny_vit, config=tiny_config).fit_task(tasks[2]).save(folder)

    def disk_full(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        if failing == "save_file":
            patch.setattr(safetensors.torch, "save_file", disk_full)
        elif failing == "json":
            patch.setattr(Path, "write_text", disk_full)
        else:
            rename = Path.rename

            def fails_into_place(self: Path, target: Path) -> Path:
                # The new one doesn't get into its place; putting the earlier one back works.
                new = (self / "model.json").exists() and len(
                    json.loads((self / "model.json").read_text())["classes"]
                ) > 1
                return disk_full() if new else rename(self, target)  # type: ignore[return-value, func-returns-value]

            patch.setattr(Path, "rename", fails_into_place)
        with pytest.raises(OSError, match="disk full"):
            fitted.save(folder)
    assert ArtsyClassifier.load(folder, tiny_vit).classes_ == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_only_a_checkpoint_is_replaced(fitted: ArtsyClassifier, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(FileExistsError, match=r"^save: .*(holds thesis.tex|thesis.tex is a file.*)$"):
            fitted.save(path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    fitted.save(tmp_path / "empty")
    assert (tmp_path / "empty" / "model.json").exists()


@pytest.fixture
def saved(fitted: ArtsyClassifier, tmp_path: Path) -> Path:
    fitted.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_load_over_another_backbone(saved: Path, tiny_vit: VisionTransformer) -> None:
    other = copy.deepcopy(tiny_vit)
    next(other.parameters()).data[0] += 1e-3
    with pytest.raises(ValueError, match=r"^load: backbone must be the one that .* \(SHA-256 of its weights .*, got "):
        ArtsyClassifier.load(saved, other)


def test_load_of_a_newer_format(saved: Path, tiny_vit: VisionTransformer) -> None:
    facts = json.loads((saved / "model.json").read_text())
    newer = {"format": facts["format"] + 1, "shape": "unheard of"}
    (saved / "model.json").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match=r"^load: .*saved has format 2, this version of artsy_ext reads up to 1$"):
        ArtsyClassifier.load(saved, tiny_vit)


@pytest.mark.parametrize("missing", ["model.json", "model.safetensors", "."])
def test_load_of_what_is_not_there(missing: str, saved: Path, tiny_vit: VisionTransformer) -> None:
    path = saved
    if missing == ".":
        path = saved.parent / "elsewhere"
    else:
        (saved / missing).unlink()
    with pytest.raises(FileNotFoundError):
        ArtsyClassifier.load(path, tiny_vit)


# Bad input


def test_an_unknown_synapse(tiny_vit: VisionTransformer) -> None:
    with pytest.raises(ValueError, match=r"^ArtsyClassifier: synapse must be one of stdp, mlp, got 'hebb'$"):
        ArtsyClassifier(tiny_vit, synapse="hebb")


def test_nothing_works_before_the_first_task(
    tiny_vit: VisionTransformer, test_images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    classifier, images = ArtsyClassifier(tiny_vit), test_images[0]
    assert (classifier.num_tasks, classifier.classes_, classifier.network_) == (0, [], None)
    names = ("predict", "predict_proba", "decision_function", "synapse_mask", "predict_with_mask")
    for call in (getattr(classifier, name) for name in names):
        with pytest.raises(RuntimeError, match="no task has been learned; call fit_task first"):
            call(images)
    with pytest.raises(RuntimeError, match="call fit_task first"):
        classifier.save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("num_learned", "labels", "message"),
    [
        (0, (), "^fit_task: dataset must not be empty$"),
        (1, (), "^fit_task: dataset must not be empty$"),
        (1, (8, 7, 3), r"^fit_task: dataset must bring new classes, got \[3, 7\] again$"),
        (2, (4, 12), r"^fit_task: dataset must bring new classes, got \[12\] again$"),
    ],
)
def test_a_refused_task_changes_nothing(
    num_learned: int,
    labels: tuple[int, ...],
    message: str,
    tiny_vit: VisionTransformer,
    tiny_config: LearnerConfig,
    tasks: list[TensorDataset],
    make_data: MakeData,
) -> None:
    classifier = ArtsyClassifier(tiny_vit, config=tiny_config)
    for task in tasks[:num_learned]:
        classifier.fit_task(task)
    before = snapshot(classifier)
    with pytest.raises(ValueError, match=message):
        classifier.fit_task(make_data(labels))
    assert_same(snapshot(classifier), before)


@pytest.mark.parametrize("stage", ["sub-network", "synapses"])
@pytest.mark.parametrize("num_learned", [0, 1])
def test_a_failure_on_the_way_changes_nothing(
    stage: str,
    num_learned: int,
    tiny_vit: VisionTransformer,
    tiny_config: LearnerConfig,
    tasks: list[TensorDataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier = ArtsyClassifier(tiny_vit, config=tiny_config)
    expected = ArtsyClassifier(tiny_vit, config=tiny_config)
    for task in tasks[:num_learned]:
        classifier.fit_task(task)
        expected.fit_task(task)
    before = snapshot(classifier)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if stage == "sub-network":
            patch.setattr("artsy_ext.learner.classifier.train_subnetwork", interrupted)
        else:
            patch.setattr(STDPSynapses, "scores", interrupted)  # needed for the thresholds, the very last step
        with pytest.raises(KeyboardInterrupt):
            classifier.fit_task(tasks[num_learned])
    assert_same(snapshot(classifier), before)

    # And the task can be learned as if nothing had happened.
    classifier.fit_task(tasks[num_learned])
    expected.fit_task(tasks[num_learned])
    for learner in (classifier, expected):
        learner.seconds_ = {}
    assert_same(snapshot(classifier), snapshot(expected))
