"""Synapses: one STDP step worked by hand, the ops it goes through, silence, thresholds, and tasks told apart."""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import artsy_ext.nn.synapses as module
from artsy_ext.nn import SYNAPSES, ClassStatistics, MLPSynapses, STDPSynapses, SynapseBank

D = 16
TASKS = (2, 3, 1)  # classes per task, ragged on purpose
KINDS = list(SYNAPSES)

Generator = Callable[[int], torch.Generator]


class Toy:
    """Gaussian classes around orthogonal directions, a few to each task."""

    def __init__(self, tasks: Sequence[int] = TASKS, per_class: int = 100, distance: float = 8.0) -> None:
        self.num_classes = sum(tasks)
        self.task = torch.arange(len(tasks)).repeat_interleave(torch.tensor(tasks))
        self.means = distance * torch.eye(D)[: self.num_classes]
        self.per_class = per_class

    def draw(self, classes: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
        labels = torch.tensor(classes).repeat_interleave(self.per_class)
        noise = torch.randn(len(labels), D, generator=torch.Generator().manual_seed(seed))
        return self.means[labels] + noise, labels

    def classes(self, task: int) -> range:
        first = int((self.task < task).sum())
        return range(first, first + int((self.task == task).sum()))

    def learn(self, bank: SynapseBank, statistics: ClassStatistics, tasks: Sequence[int], seed: int = 0) -> None:
        for t in tasks:
            z, labels = self.draw(self.classes(t), seed=100 + t)
            statistics.add_task(z, labels, self.classes(t))
            bank.fit_task(z, labels, statistics, torch.Generator().manual_seed(1000 * seed + t))

    def learned(self, bank: SynapseBank, seed: int = 0) -> SynapseBank:
        self.learn(bank, ClassStatistics(D), range(len(self.task.unique())), seed)
        return bank

    def test_set(self) -> tuple[Tensor, Tensor]:
        """Fresh samples of all classes, and their tasks."""
        z, labels = self.draw(range(self.num_classes), seed=7)
        return z, self.task[labels]


def new(kind: str, **options: Any) -> SynapseBank:
    return SYNAPSES[kind](D, **options)


def quick(kind: str) -> SynapseBank:
    """For what does not depend on how well it is learned."""
    return new(kind, **({"epochs": 1} if kind == "stdp" else {"steps": 20}))


@pytest.fixture(scope="module", params=[*KINDS, "stdp with silent synapses"])
def learned(request: pytest.FixtureRequest) -> SynapseBank:
    """Banks that have learned the toy tasks; tests leave them as they are."""
    if request.param in KINDS:
        return Toy().learned(new(request.param))
    return Toy().learned(STDPSynapses(D, on=0.12, off=0.08))


class Spy:
    """Counts the calls of a function and lets it work; `results` and `arguments` are copies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.function = getattr(module, name)
        self.calls: list[SimpleNamespace] = []
        monkeypatch.setattr(module, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        copied = [a.clone() if isinstance(a, Tensor) else a for a in args]
        result = self.function(*args, **kwargs)
        self.calls.append(SimpleNamespace(args=copied, kwargs=kwargs, result=result))
        return result


# One learning step by hand: D = 4, so r = clip(√4/2·[ẑ⁺, (−ẑ)⁺], 0, 1) is exactly 0 or 1 along an axis, a rate of 1
# spikes at every step and one of 0 at none. Afferents: ON 0..3, OFF 4..7, and 8, always on, of value 1/√8.

ON_0, OFF_1, BIAS = 0, 5, 8
DECAY = (1 - 1e-4) ** (1 / 8)
# A change of u/8 at each of 8 steps, each decayed by the steps behind it.
SHRUNK = sum(DECAY**k for k in range(8)) / 8


def one_step_bank(**options: Any) -> STDPSynapses:
    return STDPSynapses(4, steps=8, rate=0.2, epochs=1, batch_size=4, **options)


def axis(i: int, length: float) -> list[float]:
    return [length if j == i else 0.0 for j in range(4)]


def test_one_step_while_all_synapses_are_silent(monkeypatch: pytest.MonkeyPatch, generator: Generator) -> None:
    # Too few to hold any out: all four are the one batch.
    z = torch.tensor([axis(0, 2.0), axis(0, 5.0), axis(1, -3.0), axis(0, 0.5)])
    labels = torch.tensor([0, 0, 1, 0])
    statistics = ClassStatistics(4)
    statistics.add_task(z, labels, range(2))
    stdp_ = Spy(monkeypatch, "stdp_")
    bank = one_step_bank(on=0.12, off=0.08)
    bank.fit_task(z, labels, statistics, generator(0))

    (step,) = stdp_.calls
    start = step.args[0]
    assert start.shape == (1, 2, 9)
    assert (start >= 0).all()
    assert (start < 0.02).all()

    # Nothing transmits yet: V = 0, softmax = ½. For its own samples a unit's signal is ½, for the other's −½.
    # Mean over the batch, times η·8 = 1.6, times the rate:
    change = torch.zeros(2, 9)
    change[0, ON_0] = 1.6 * (3 * 0.5) / 4  # three samples of class 0 light ON 0
    change[0, OFF_1] = 1.6 * (-0.5) / 4  # one of class 1 lights OFF 1
    change[0, BIAS] = 1.6 * (3 * 0.5 - 0.5) / 4 / math.sqrt(8)
    change[1] = -change[0]
    torch.testing.assert_close(bank.weight[0], (1 - 1e-4) * start[0] + SHRUNK * change, rtol=1e-5, atol=1e-6)

    # 0.6, 0.2 and 0.14 pass the threshold of 0.12, whatever the start; the others stay below.
    assert bank.functional[0].nonzero()[:, 1].tolist() == [ON_0, OFF_1, BIAS] * 2
    assert bank.silent_fraction == pytest.approx(1 - 3 / 9)


@pytest.mark.parametrize("tasks", [(2,), (1, 1), (1, 2)], ids=str)
def test_one_step_with_lateral_inhibition(
    tasks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, generator: Generator
) -> None:
    # The last task is new. Units of all sub-networks inhibit each other through one softmax.
    num_old = sum(tasks[:-1])
    directions = torch.tensor([axis(0, 1.0), axis(1, -1.0), axis(3, 1.0)])
    new_labels = torch.arange(num_old, sum(tasks))
    labels = torch.tensor([num_old] * (2 if num_old else 3) + [sum(tasks) - 1])

    class FixedSamples:
        """Statistics whose pseudo-samples are known."""

        task = torch.arange(len(tasks)).repeat_interleave(torch.tensor(tasks))

        def sample(self, classes: Tensor, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return directions[classes], classes

    bank = one_step_bank()
    if num_old:
        old = torch.linspace(-0.5, 0.5, 9)
        bank.load_state_dict(
            {
                "weight": old.view(1, 1, 9),
                "functional": torch.zeros(1, 1, 9, dtype=torch.bool),
                "unit_class": torch.tensor([[0]]),
                "thresholds": torch.zeros(1),
            }
        )
    stdp_ = Spy(monkeypatch, "stdp_")
    bank.fit_task(directions[labels], labels, FixedSamples(), generator(0))  # type: ignore[arg-type]

    (step,) = stdp_.calls
    start = step.args[0]
    units = {0: (0, 0)} if num_old else {}
    units |= {c: (len(tasks) - 1, j) for j, c in enumerate(new_labels.tolist())}
    expected = start * (1 - 1e-4)
    everything = [*labels.tolist(), *range(num_old)]
    assert len(everything) == 4  # one batch
    for c in everything:
        lit = {0: [ON_0], 1: [OFF_1], 2: [3]}[c]
        rate = [0.0] * 8 + [8**-0.5]
        for i in lit:
            rate[i] = 1.0
        V = {u: sum(w * r for w, r in zip(start[at].tolist(), rate, strict=True)) for u, at in units.items()}
        total = sum(math.exp(v) for v in V.values())
        for u, at in units.items():
            signal = (u == c) - math.exp(V[u]) / total
            expected[at] += SHRUNK * 1.6 * signal * torch.tensor(rate) / len(everything)
    torch.testing.assert_close(bank.weight, expected, rtol=1e-5, atol=1e-6)


def test_rates_by_hand() -> None:
    bank = STDPSynapses(4)
    # ẑ = (0.6, −0.8, 0, 0) and √4/2 = 1; a vector of length 0 lights nothing.
    rates = bank.rates(torch.tensor([[3.0, -4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    b = 8**-0.5
    torch.testing.assert_close(rates, torch.tensor([[0.6, 0, 0, 0, 0, 0.8, 0, 0, b], [0, 0, 0, 0, 0, 0, 0, 0, b]]))
    # √16/2 = 2 drives what is far from 0 into saturation.
    wide = STDPSynapses(16).rates(torch.eye(16)[:1] * 9)
    assert wide[0].tolist() == pytest.approx([1.0] + [0.0] * 31 + [b])


@pytest.mark.parametrize("consolidated", [False, True])
def test_stdp_learns_through_the_ops(consolidated: bool, monkeypatch: pytest.MonkeyPatch, generator: Generator) -> None:
    names = ("encode_spikes", "synapse_currents", "stdp_", "consolidate")
    spies = {name: Spy(monkeypatch, name) for name in names}
    toy, statistics = Toy((2,), per_class=50), ClassStatistics(D)
    z, labels = toy.draw(range(2), seed=0)
    statistics.add_task(z, labels, range(2))
    bank = STDPSynapses(D, epochs=3, batch_size=32, **({"on": 0.12, "off": 0.08} if consolidated else {}))
    bank.fit_task(z, labels, statistics, generator(0))

    # 80 of 100 samples are learned from: 3 batches in each of 3 epochs.
    assert len(spies["encode_spikes"].calls) == len(spies["stdp_"].calls) == 9
    assert len(spies["consolidate"].calls) == (9 if consolidated else 0)
    assert len(spies["synapse_currents"].calls) >= 9
    # Potentials are first asked for in learning, then for the threshold.
    for spikes, currents, step in zip(
        spies["encode_spikes"].calls, spies["synapse_currents"].calls[:9], spies["stdp_"].calls, strict=True
    ):
        weight, pre, post, rule = step.args
        # In learning a potential is what the spikes bring, at a test what the rates bring.
        assert torch.equal(currents.args[0], pre.mean(0))
        batch = len(spikes.args[0])
        assert torch.equal(pre[..., :-1], spikes.result)
        assert spikes.result.shape == (8, batch, 2 * D)
        assert set(spikes.result.unique().tolist()) <= {0.0, 1.0}
        torch.testing.assert_close(pre[..., -1], torch.full((8, batch), 8**-0.5))
        # The signal of a sample over all units is 1 − Σ softmax = 0, the same at every step.
        assert post.shape == (8, batch, 1, 2)
        torch.testing.assert_close(post.sum((2, 3)), torch.zeros(8, batch), atol=1e-6, rtol=0)
        assert torch.equal(post, post[:1].expand_as(post))
        assert weight.shape == (1, 2, 2 * D + 1)
        assert (rule.decay_pre, rule.a_plus, rule.a_minus, rule.reduction) == (0.0, 0.2, 0.0, "mean")
        assert (1 - rule.weight_decay) ** 8 == pytest.approx(1 - 1e-4)
    seeds = [call.kwargs["seed"] for call in spies["encode_spikes"].calls]
    assert len(set(seeds)) == len(seeds)
    # The ops' results are what was learned, nothing is added behind them.
    assert torch.equal(bank.weight, spies["stdp_"].calls[-1].result[0])
    if consolidated:
        assert torch.equal(bank.functional, spies["consolidate"].calls[-1].result)


def test_mlp_learns_through_the_op(monkeypatch: pytest.MonkeyPatch, generator: Generator) -> None:
    spy = Spy(monkeypatch, "synapse_scores")
    toy, statistics = Toy((2, 2), per_class=20), ClassStatistics(D)
    bank = MLPSynapses(D, steps=7)
    for task, steps in ((0, 0), (1, 7)):  # a lone synapse has nothing to tell its task from
        classes = range(2 * task, 2 * task + 2)
        z, labels = toy.draw(classes, seed=0)
        statistics.add_task(z, labels, classes)
        spy.calls.clear()
        bank.fit_task(z, labels, statistics, generator(0))
        assert len(spy.calls) == steps + task + 1  # and once for each threshold
    o = bank.outputs(z)
    torch.testing.assert_close(bank.scores(z), o - o.logsumexp(1, keepdim=True))


def test_ragged_tasks(learned: SynapseBank) -> None:
    assert learned.num_subnetworks == 3
    assert learned.thresholds.shape == (3,)
    if not isinstance(learned, STDPSynapses):
        assert learned.down.shape == (3, 32, D)
        return
    assert learned.unit_class.tolist() == [[0, 1, -1], [2, 3, 4], [5, -1, -1]]
    missing = learned.unit_class < 0
    assert (learned.weight[missing] == 0).all()
    assert not learned.functional[missing].any()
    V = learned.potentials(learned.rates(Toy().test_set()[0]))
    assert torch.equal(V.isneginf(), missing.expand_as(V))
    z, labels = Toy().draw(range(6), seed=7)
    assert (learned.classify(z) == labels).float().mean() > 0.95


def test_scores_are_log_probabilities(learned: SynapseBank) -> None:
    z, tasks = Toy().test_set()
    probabilities = learned.scores(z).exp()
    assert probabilities.shape == (len(z), 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(z)))
    assert (probabilities.argmax(1) == tasks).float().mean() > 0.95


def test_separable_tasks_are_told_apart(learned: SynapseBank) -> None:
    z, tasks = Toy().test_set()
    mask = learned.mask(z)
    assert mask.dtype == torch.bool
    own = torch.nn.functional.one_hot(tasks, 3).bool()
    assert (mask & own).sum() / own.sum() > 0.95
    assert (mask & own).sum() / mask.sum() > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_first_task_is_always_functional(kind: str) -> None:
    bank = Toy((2,)).learned(new(kind))
    anything = torch.cat([torch.randn(50, D) * 100, torch.zeros(1, D)])
    assert bank.mask(anything).all()


def test_fallback(learned: SynapseBank) -> None:
    z, _ = Toy().test_set()
    own, fallback = learned.thresholds.clone(), learned.fallback
    scores = learned.scores(z)
    try:
        learned.thresholds = torch.full((3,), 1.0)  # a log-probability is never above 0
        learned.fallback = "none"
        assert not learned.mask(z).any()
        learned.fallback = "top"
        assert torch.equal(learned.mask(z).nonzero()[:, 1], scores.argmax(1))
        # Where some score reaches its threshold the fallback has no say.
        learned.thresholds = torch.tensor([-1e9, -1e9, 1.0])
        assert torch.equal(learned.mask(z), torch.tensor([True, True, False]).expand(len(z), 3))
    finally:
        learned.thresholds, learned.fallback = own, fallback


def test_a_score_at_the_threshold_counts(learned: SynapseBank) -> None:
    z = Toy().test_set()[0][:1]
    own = learned.thresholds.clone()
    try:
        learned.thresholds = learned.scores(z)[0]
        assert learned.mask(z).all()
    finally:
        learned.thresholds = own


class Recorder(SynapseBank):
    """What the base class gives to a kind of synapse; scores are minus the distances to fixed points."""

    def __init__(self, quantile: float) -> None:
        super().__init__(1, quantile=quantile)
        self.grown: list[list[int]] = []
        self.lessons: list[SimpleNamespace] = []

    num_weights = 0

    def _grow(self, classes: Tensor, generator: torch.Generator) -> None:
        self.grown.append(classes.tolist())

    def _learn(self, z: Tensor, labels: Tensor, tasks: Tensor, *_: Any) -> None:
        self.lessons.append(SimpleNamespace(z=z, labels=labels, tasks=tasks))

    def scores(self, z: Tensor) -> Tensor:
        return torch.cat([-(z - 100 * s).abs() for s in range(len(self.grown))], 1)


class Samples(ClassStatistics):
    """Keeps the pseudo-samples that it gave."""

    def __init__(self) -> None:
        super().__init__(1)
        self.given: list[tuple[Tensor, Tensor]] = []

    def sample(self, classes: Tensor, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.given.append(super().sample(classes, per_class, generator))
        return self.given[-1]


@pytest.mark.parametrize("quantile", [0.0, 0.02, 0.5])
def test_what_is_learned_from_and_what_thresholds_are_set_on(quantile: float, generator: Generator) -> None:
    bank, statistics = Recorder(quantile), Samples()
    sizes = ((30, 20), (60,), (10, 10, 10))
    first = 0
    for t, counts in enumerate(sizes):
        labels = torch.arange(first, first + len(counts)).repeat_interleave(torch.tensor(counts))
        z = 100.0 * t + torch.randn(len(labels), 1)
        classes = range(first, first + len(counts))
        statistics.add_task(z, labels, classes)
        statistics.given.clear()
        bank.fit_task(z, labels, statistics, generator(t))
        first = classes.stop

        # Four fifths of the new samples, then for each old class as many pseudo-samples as new ones per class.
        assert bank.grown[-1] == list(classes)
        lesson = bank.lessons[-1]
        num_new = len(z) - len(z) // 5
        shown, pseudo = lesson.z.split([num_new, len(lesson.z) - num_new])
        row = (shown == z.t()).int().argmax(1)
        assert torch.equal(shown, z[row])
        assert len(row.unique()) == num_new
        assert torch.equal(lesson.labels[:num_new], labels[row])
        per_class = -(-num_new // len(counts))
        assert lesson.labels[num_new:].tolist() == [c for c in range(classes.start) for _ in range(per_class)]
        assert torch.equal(pseudo, statistics.given[0][0])
        assert torch.equal(lesson.tasks, statistics.task[lesson.labels])

        # Old thresholds: quantiles over new pseudo-samples of the task. The new one: over the held-out fifth.
        assert bank.num_subnetworks == t + 1
        held_out = z[~torch.isin(z[:, 0], shown[:, 0])]
        assert len(held_out) == len(z) // 5
        for s, own in enumerate([*(given[0] for given in statistics.given[1:]), held_out]):
            scores = bank.scores(own)[:, s]
            torch.testing.assert_close(bank.thresholds[s], scores.quantile(quantile), rtol=0, atol=0)
            assert (scores >= bank.thresholds[s]).float().mean() >= 1 - quantile - 1 / len(own)
        for s, (_, given_labels) in enumerate(statistics.given[1:]):
            assert set(statistics.task[given_labels].tolist()) == {s}


@pytest.mark.parametrize("kind", KINDS)
def test_older_thresholds_follow_a_new_competitor(kind: str) -> None:
    # The second task's classes lie near the first's, so the first's scores drop from 0, all that a lone task knows.
    bank, statistics = new(kind), ClassStatistics(D)
    toy = Toy((2, 2), distance=5.0)
    toy.means = torch.stack([3 * torch.eye(D)[0], 3 * torch.eye(D)[1]] * 2)
    toy.means[2:, 2] = 4.0
    toy.learn(bank, statistics, [0])
    assert bank.thresholds.tolist() == [0.0]
    toy.learn(bank, statistics, [1])
    assert bank.thresholds[0] < -0.05
    z, tasks = toy.test_set()
    own = torch.nn.functional.one_hot(tasks, 2).bool()
    recall = (bank.mask(z) & own).sum(0) / own.sum(0)
    assert (recall > 0.9).all()
    # Without the recalibration nearly all of the first task's samples would miss their threshold.
    assert (bank.scores(z)[tasks == 0, 0] >= 0).float().mean() < 0.5


def test_silent_synapses_do_not_transmit() -> None:
    bank = Toy().learned(STDPSynapses(D, on=0.12, off=0.08))
    z, _ = Toy().test_set()
    silent = ~bank.functional & (bank.unit_class >= 0)[..., None]
    assert 0.05 < silent.float().mean() < 0.95
    before = bank.potentials(bank.rates(z))
    bank.weight[silent] += 10.0
    assert torch.equal(bank.potentials(bank.rates(z)), before)
    bank.weight[bank.functional] += 10.0
    assert not torch.equal(bank.potentials(bank.rates(z)), before)


def test_silent_synapses_learn(monkeypatch: pytest.MonkeyPatch, generator: Generator) -> None:
    # The first update is made while all are silent, and unsilences some.
    stdp_ = Spy(monkeypatch, "stdp_")
    toy, statistics = Toy((2,)), ClassStatistics(D)
    z, labels = toy.draw(range(2), seed=0)
    statistics.add_task(z, labels, range(2))
    bank = STDPSynapses(D, on=0.12, off=0.08)
    bank.fit_task(z, labels, statistics, generator(0))
    before, after = stdp_.calls[0].args[0], stdp_.calls[1].args[0]
    assert (before < 0.12).all()
    assert (after.abs() >= 0.12).any()
    assert bank.functional.any()


def test_silent_fraction() -> None:
    assert new("mlp").silent_fraction is None
    assert Toy((2,)).learned(new("stdp")).silent_fraction is None
    bank = Toy().learned(STDPSynapses(D, on=0.12, off=0.08))
    # Six units; where a task has fewer than the largest, what is missing doesn't count as silent.
    transmitting = int((bank.functional).sum())
    assert bank.silent_fraction == pytest.approx(1 - transmitting / (6 * (2 * D + 1)))
    # From the weights at the end alone: what is above `on` transmits, what is below `off` doesn't.
    units = bank.unit_class >= 0
    strength = bank.weight[units].abs()
    assert bank.functional[units][strength >= 0.12].all()
    assert not bank.functional[units][strength < 0.08].any()


@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_and_apart_from_the_global_random_state(kind: str) -> None:
    state = torch.get_rng_state()
    first, again, other = (Toy().learned(quick(kind), seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    name = "weight" if kind == "stdp" else "down"
    assert not torch.equal(first[name], other[name])


def test_all_gates_of_the_mlp_are_trained_again() -> None:
    bank, statistics, toy = new("mlp"), ClassStatistics(D), Toy()
    toy.learn(bank, statistics, [0])
    before = bank.down[0].clone()
    toy.learn(bank, statistics, [1])
    assert (bank.down[0] - before).abs().amax() > 1e-3
    assert not any(parameter.requires_grad for parameter in bank.parameters())


@pytest.mark.parametrize("num_old", [1, 3, 6])
def test_loss_of_the_mlp_is_balanced(num_old: int, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[tuple[Tensor, Tensor]] = []
    loss = torch.nn.functional.binary_cross_entropy_with_logits

    def recorded(o: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        losses.append((target, weight))
        return loss(o, target, weight=weight)

    bank, statistics, toy = MLPSynapses(D, steps=5), ClassStatistics(D), Toy([1] * (num_old + 1), per_class=10)
    toy.learn(bank, statistics, range(num_old))
    monkeypatch.setattr(torch.nn.functional, "binary_cross_entropy_with_logits", recorded)
    toy.learn(bank, statistics, [num_old])
    assert len(losses) == 5
    for target, weight in losses:
        # A sample is of one task; beside 64 new ones there are as many for each old task, of at most four.
        assert target.shape == (64 * (1 + min(num_old, 4)), num_old + 1)
        assert (target.sum(1) == 1).all()
        assert target[:, -1].sum() == 64
        # Every gate's yes weighs about as much as its no, up to the one added against division by 0.
        yes, no = (weight * target).sum(0), (weight * (1 - target)).sum(0)
        p = target.sum(0)
        torch.testing.assert_close(yes, no * p / (p + 1))


@pytest.mark.parametrize("own", [0, 1, 3], ids=lambda own: f"into S={own}")
@pytest.mark.parametrize(
    "make",
    [lambda: quick("stdp"), lambda: STDPSynapses(D, epochs=1, on=0.12, off=0.08), lambda: quick("mlp")],
    ids=["stdp", "stdp with silent synapses", "mlp"],
)
def test_state_loads_into_a_bank_of_any_number_and_learning_goes_on(make: Callable[[], SynapseBank], own: int) -> None:
    toy = Toy((*TASKS, 2), per_class=30)
    banks, statistics = [make(), make()], [ClassStatistics(D), ClassStatistics(D)]
    if own:  # something else has been learned before
        Toy(TASKS[::-1][:own], per_class=10).learned(banks[1], seed=3)
    toy.learn(banks[0], statistics[0], range(3))
    banks[1].load_state_dict(banks[0].state_dict())
    statistics[1].load_state_dict(statistics[0].state_dict())
    z, _ = toy.test_set()
    assert banks[1].num_subnetworks == 3
    assert torch.equal(banks[1].scores(z), banks[0].scores(z))
    assert torch.equal(banks[1].mask(z), banks[0].mask(z))
    for bank, kept in zip(banks, statistics, strict=True):
        toy.learn(bank, kept, [3])
    torch.testing.assert_close(banks[1].state_dict(), banks[0].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "name"), [("stdp", "weight"), ("mlp", "down")])
def test_state_of_another_width_is_an_error(kind: str, name: str) -> None:
    saved = Toy((2,), per_class=10).learned(quick(kind))
    with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
        SYNAPSES[kind](D + 1).load_state_dict(saved.state_dict())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("stdp", {"on": 0.1}, "STDPSynapses: on and off go together, got on=0.1, off=None"),
        ("stdp", {"off": 0.1}, "STDPSynapses: on and off go together, got on=None, off=0.1"),
        ("stdp", {"on": 0.1, "off": 0.2}, "STDPSynapses: on and off must satisfy 0 <= off <= on, got on=0.1, off=0.2"),
        ("mlp", {"quantile": 1.0}, r"SynapseBank: quantile must be in \[0, 1\), got 1.0"),
        ("stdp", {"quantile": -0.1}, r"SynapseBank: quantile must be in \[0, 1\), got -0.1"),
        ("stdp", {"fallback": "all"}, "SynapseBank: fallback must be 'top' or 'none', got 'all'"),
    ],
)
def test_bad_settings(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        new(kind, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 4])
def test_very_few_samples(kind: str, count: int, generator: Generator) -> None:
    # Too few to hold any out: the threshold is set on what was learned from.
    bank, statistics = new(kind), ClassStatistics(D)
    for t in range(2):
        z = torch.eye(D)[[t]] * 5 + 0.01 * torch.randn(count, D)
        labels = torch.full((count,), t)
        statistics.add_task(z, labels, range(t, t + 1))
        bank.fit_task(z, labels, statistics, generator(t))
    assert bank.thresholds.isfinite().all()
    assert torch.equal(bank.mask(torch.eye(D)[:2] * 5), torch.eye(2, dtype=torch.bool))
