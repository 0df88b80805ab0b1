"""How often synapses are silent: what is recorded while they learn, and the pictures of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from artsy_ext.learner import ArtsyClassifier, Features, LearnerConfig, run_experiment
from artsy_ext.learner.metrics import functional_counts
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.silence import (
    draw_counts,
    draw_silence,
    silence_figure,
    spikes_figure,
    weights_figure,
)
from artsy_ext.nn import RoutedViT, STDPSynapses

METHODS = ("ease", "random", "artsy", "artsy-mlp")


@pytest.fixture(scope="module")
def trained(tiny_vit: Any, tiny_stream: Any, tiny_config: LearnerConfig) -> Any:
    """Results of two seeds, and the classifier of the first."""
    return run_experiment(
        lambda seed: tiny_stream, Features(RoutedViT(tiny_vit)), None, METHODS, (0, 1), tiny_config, Progress.silent()
    )


def test_counts_worked_by_hand() -> None:
    mask = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.bool)
    assert functional_counts(mask) == [0.25, 0.5, 0.25, 0.0]


def test_silent_fractions_worked_by_hand() -> None:
    synapses = STDPSynapses(1, on=0.2, off=0.1)
    # Two units and three afferents each; the second sub-network has one unit alone.
    synapses.functional = torch.tensor([[[1, 0, 0], [1, 1, 0]], [[0, 1, 0], [0, 0, 0]]], dtype=torch.bool)
    synapses.unit_class = torch.tensor([[0, 1], [2, -1]])
    found = synapses.silent_fractions
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([3 / 6, 2 / 3]))
    assert synapses.silent_fraction == pytest.approx(5 / 9)
    assert STDPSynapses(1).silent_fractions is None


def test_silence_is_recorded_while_synapses_learn(trained: Any, tiny_config: LearnerConfig) -> None:
    classifier = trained.classifier
    synapses, classes = classifier.network_.synapses, torch.tensor([2, 3, 1])
    assert len(classifier.silence_) == 3
    assert classifier.silence_[0].by_epoch[0] == 1.0  # what is new is silent
    for t, (by_epoch, of_each) in enumerate(classifier.silence_):
        assert len(by_epoch) == tiny_config.stdp_epochs + 1
        assert len(of_each) == t + 1
        assert by_epoch[-1] == pytest.approx(
            (torch.tensor(of_each) @ classes[: t + 1].float() / classes[: t + 1].sum()).item()
        )
        if t:  # the old ones as they were, and the new ones all silent
            old = classes[:t].sum()
            before = classifier.silence_[t - 1].by_epoch[-1]
            assert by_epoch[0] == pytest.approx(((old * before + classes[t]) / (old + classes[t])).item())
    assert classifier.silence_[-1].of_each == synapses.silent_fractions.tolist()
    found = trained.results["methods"]["artsy"]["synapses"]
    assert found["silent_by_epoch"]["values"][0] == [task.by_epoch for task in classifier.silence_]
    assert [row[:t] for t, row in enumerate(found["silent_by_task"]["values"][0], 1)] == [
        task.of_each for task in classifier.silence_
    ]
    assert found["silent_by_task"]["mean"][0][1:] == [None, None]
    assert sum(found["functional_counts"]["mean"]) == pytest.approx(1)
    for name in ("ease", "random", "artsy-mlp"):
        assert trained.results["methods"][name]["synapses"]["silent_by_epoch"] is None


def test_what_is_drawn_is_what_was_recorded(trained: Any) -> None:
    found = trained.results["methods"]["artsy"]["synapses"]
    axes = Figure().subplots()
    draw_silence(axes, trained.results, "artsy")
    thick = [line for line in axes.lines if line.get_linewidth() == 2]
    assert [list(line.get_ydata()) for line in thick] == [
        pytest.approx([100 * value for value in row]) for row in found["silent_by_epoch"]["mean"]
    ]
    axes = Figure().subplots()
    draw_counts(axes, trained.results, "artsy")
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(
        [100 * share for share in found["functional_counts"]["mean"]]
    )


def test_pictures_of_silence(trained: Any) -> None:
    figure = silence_figure(trained.results)
    assert figure is not None
    names = figure.axes[3].get_legend_handles_labels()[1]
    assert [label.split()[0] for label in names] == list(METHODS)
    methods = {name: method for name, method in trained.results["methods"].items() if name != "artsy"}
    assert silence_figure({**trained.results, "methods": methods}) is None


def test_pictures_of_synapses_need_no_image(trained: Any) -> None:
    weights = weights_figure(trained.classifier)
    spikes = spikes_figure(trained.classifier)
    assert weights is not None
    assert spikes is not None
    for figure in (weights, spikes):
        figure.canvas.draw()
    # Grey where silent: as many as there are.
    synapses = trained.classifier.network_.synapses
    shown = weights.axes[0].images[0].get_array()
    assert shown.shape == (6, 33)
    assert shown.mask.mean() == pytest.approx(synapses.silent_fraction)
    # The sample's own sub-network is marked, one for each class.
    assert list(spikes.axes[2].lines[0].get_ydata()) == [0, 0, 1, 1, 1, 2]


def test_no_pictures_of_synapses_of_another_kind(tiny_vit: Any, tiny_config: LearnerConfig, make_data: Any) -> None:
    classifier = ArtsyClassifier(tiny_vit, synapse="mlp", config=replace(tiny_config, epochs=1))
    classifier.fit_task(make_data([0, 1]))
    assert classifier.silence_ == []
    assert weights_figure(classifier) is None
    assert spikes_figure(classifier) is None


def test_synapses_that_are_never_silent(tiny_vit: Any, tiny_config: LearnerConfig, make_data: Any) -> None:
    classifier = ArtsyClassifier(tiny_vit, config=replace(tiny_config, epochs=1, consolidate=False))
    classifier.fit_task(make_data([0, 1]))
    assert classifier.silence_ == []
    figure = weights_figure(classifier)
    assert figure is not None
    assert not figure.axes[0].images[0].get_array().mask.any()
