"""SynapseBank: one artificial synapse per sub-network, which reads E0's features and makes it functional or silent."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artsy_ext.nn._growing import Growing
from artsy_ext.nn.statistics import ClassStatistics
from artsy_ext.ops import STDPRule, consolidate, encode_spikes, stdp_, synapse_currents, synapse_scores

Track = Callable[[Iterable[int], str], Iterable[int]]


def _untracked(items: Iterable[int], description: str) -> Iterable[int]:
    return items


class SynapseBank(Growing, ABC):
    """S synapses with a score and a threshold each: sub-network s is functional where its score reaches its threshold.

    Args:
        dim: D of the whitened features z.
        quantile: q; a threshold is the q-quantile of its own task's scores (of pseudo-samples, once the task is an
            older one), so about 1 − q of a task's samples find their sub-network functional.
        fallback: what a sample gets whose scores reach no threshold: "top", the sub-network with the highest score, or
            "none".
        held_out: share of a new task's samples that set its threshold and are not learned from.
        calibration_samples: pseudo-samples per class that set an older sub-network's threshold anew.
    """

    growing: ClassVar = {"thresholds": (0,)}
    thresholds: Tensor

    def __init__(
        self,
        dim: int,
        *,
        quantile: float = 0.02,
        fallback: Literal["top", "none"] = "top",
        held_out: float = 0.2,
        calibration_samples: int = 200,
    ) -> None:
        super().__init__()
        if not 0 <= quantile < 1:
            raise ValueError(f"SynapseBank: quantile must be in [0, 1), got {quantile}")
        if fallback not in ("top", "none"):
            raise ValueError(f"SynapseBank: fallback must be 'top' or 'none', got {fallback!r}")
        if not 0 <= held_out < 1:
            raise ValueError(f"SynapseBank: held_out must be in [0, 1), got {held_out}")
        if calibration_samples < 1:
            raise ValueError(f"SynapseBank: calibration_samples must be >= 1, got {calibration_samples}")
        self.dim, self.quantile, self.fallback = dim, quantile, fallback
        self.held_out, self.calibration_samples = held_out, calibration_samples
        self.register_buffer("thresholds", torch.zeros(0))

    @property
    def num_subnetworks(self) -> int:
        """S."""
        return len(self.thresholds)

    @property
    def silent_fraction(self) -> float | None:
        """Share of synaptic weights that are silent; None where synapses are never silent."""
        return None

    @property
    def silent_fractions(self) -> Tensor | None:
        """[S] the same of each sub-network's synapse."""
        return None

    @torch.no_grad()
    def fit_task(
        self,
        z: Tensor,
        labels: Tensor,
        statistics: ClassStatistics,
        generator: torch.Generator,
        track: Track = _untracked,
    ) -> None:
        """Adds the synapse of the next sub-network and learns to tell its task from the older ones.

        The older tasks are present as pseudo-samples of their class statistics, as many per class as the new classes
        have on average. Some of the new samples are held out to set the threshold (where there are too few, all set
        it); the older thresholds are set anew on pseudo-samples, since a new competitor lowers every score.

        Args:
            z: [n, D] whitened features of the new task.
            labels: [n] int64, their class indexes.
            statistics: of all classes, those of the new task included.
            generator: for the split, the pseudo-samples, the order and the spikes.
            track: wraps the loop over epochs for a progress bar.
        """
        task = self.num_subnetworks
        new_classes = (statistics.task == task).nonzero().flatten()
        old_classes = (statistics.task < task).nonzero().flatten()
        order = torch.randperm(len(z), generator=generator)
        held_out = int(len(z) * self.held_out)
        train = order[held_out:]
        own = z[order[:held_out]] if held_out else z

        pseudo, pseudo_labels = statistics.sample(old_classes, math.ceil(len(train) / len(new_classes)), generator)
        self._grow(new_classes, generator)
        samples, sample_labels = torch.cat([z[train], pseudo]), torch.cat([labels[train], pseudo_labels])
        self._learn(samples, sample_labels, statistics.task[sample_labels], generator, track)

        thresholds = []
        for s in range(task):
            classes = (statistics.task == s).nonzero().flatten()
            calibration, _ = statistics.sample(classes, self.calibration_samples, generator)
            thresholds.append(self.scores(calibration)[:, s].quantile(self.quantile))
        thresholds.append(self.scores(own)[:, task].quantile(self.quantile))
        self.thresholds = torch.stack(thresholds)

    @property
    @abstractmethod
    def num_weights(self) -> int:
        """Trained numbers in all synapses."""

    @abstractmethod
    def _grow(self, classes: Tensor, generator: torch.Generator) -> None:
        """Makes room for the synapse of one more sub-network, which answers for `classes`."""

    @abstractmethod
    def _learn(self, z: Tensor, labels: Tensor, tasks: Tensor, generator: torch.Generator, track: Track) -> None:
        """Learns from the new samples and the older tasks' pseudo-samples: [n, D], their classes and tasks [n]."""

    @abstractmethod
    def scores(self, z: Tensor) -> Tensor:
        """[B, D] -> [B, S] log-probabilities of the sub-networks."""

    def mask(self, z: Tensor) -> Tensor:
        """[B, D] -> [B, S] bool, True where a sub-network is functional for a sample."""
        scores = self.scores(z)
        mask = scores >= self.thresholds
        if self.fallback == "top":
            top = F.one_hot(scores.argmax(1), self.num_subnetworks).bool()
            mask = torch.where(mask.any(1, keepdim=True), mask, top)
        return mask


class STDPSynapses(SynapseBank):
    """Synapses trained by STDP: spiking ON and OFF afferents, one unit per class, lateral inhibition.

    Rates are r = clip(√D/2·[ẑ⁺, (−ẑ)⁺], 0, 1) with ẑ = z/‖z‖; T steps of spikes; the potential V is what the functional
    synapses transmit. The post-synaptic signal is teacher − softmax(V) over the units of all sub-networks:
    potentiation where the teacher fires, anti-Hebbian depression where a unit would fire by itself. The bias is an
    always-on afferent. With this signal and no traces the order of spikes does not matter: the update is that of a
    linear softmax classifier on noisy rates, in which silent synapses learn but do not transmit.

    A sub-network's score is the log-softmax, over the sub-networks, of its strongest unit's potential from rates.

    Args:
        steps: T.
        rate: η, the learning rate.
        epochs, batch_size: passes over the task's samples, and samples per update.
        on, off: thresholds of `artsy_ext.ops.consolidate`; None for synapses that are never silent.
    """

    growing: ClassVar = {"weight": (0, 1), "functional": (0, 1), "unit_class": (0, 1), **SynapseBank.growing}
    weight: Tensor
    functional: Tensor
    unit_class: Tensor

    _BIAS_RATE = 8**-0.5

    def __init__(
        self,
        dim: int,
        *,
        steps: int = 8,
        rate: float = 0.2,
        epochs: int = 5,
        batch_size: int = 32,
        on: float | None = None,
        off: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dim, **options)
        if (on is None) != (off is None):
            raise ValueError(f"STDPSynapses: on and off go together, got on={on}, off={off}")
        if on is not None and off is not None and not 0 <= off <= on:
            raise ValueError(f"STDPSynapses: on and off must satisfy 0 <= off <= on, got on={on}, off={off}")
        self.steps, self.rate, self.epochs, self.batch_size = steps, rate, epochs, batch_size
        self.on, self.off = on, off
        afferents = 2 * dim + 1
        self.register_buffer("weight", torch.zeros(0, 0, afferents))
        self.register_buffer("functional", torch.zeros(0, 0, afferents, dtype=torch.bool))
        self.register_buffer("unit_class", torch.zeros(0, 0, dtype=torch.int64))  # -1 where there is no unit

    @property
    def silent_fraction(self) -> float | None:
        if self.on is None:
            return None
        return 1 - self.functional[self.unit_class >= 0].float().mean().item()

    @property
    def silent_fractions(self) -> Tensor | None:
        if self.on is None:
            return None
        used = (self.unit_class >= 0)[..., None].expand_as(self.functional)
        return (used & ~self.functional).flatten(1).sum(1) / used.flatten(1).sum(1)

    @property
    def num_weights(self) -> int:
        return self.weight[self.unit_class >= 0].numel()

    def rates(self, z: Tensor) -> Tensor:
        """[B, D] -> [B, 2D+1] firing rates of the afferents: ON, OFF, and the always-on one."""
        z = F.normalize(z, dim=1) * (math.sqrt(self.dim) / 2)
        return F.pad(torch.cat([z, -z], 1).clamp(0, 1), (0, 1), value=self._BIAS_RATE)

    def spikes(self, rates: Tensor, seed: int) -> Tensor:
        """[B, 2D+1] rates -> [T, B, 2D+1]: the afferents' spikes; the always-on one sends its rate at every step."""
        pre = encode_spikes(rates[:, :-1], self.steps, seed=seed, dtype=rates.dtype)
        return F.pad(pre, (0, 1), value=self._BIAS_RATE)

    def potentials(self, afferents: Tensor) -> Tensor:
        """[B, 2D+1] -> [B, S, J] potentials of the units, −inf where there is no unit."""
        functional = None if self.on is None else self.functional
        V = synapse_currents(afferents, self.weight, functional, torch.zeros_like(self.weight[..., 0]))
        return V.masked_fill(self.unit_class < 0, -torch.inf)

    def scores(self, z: Tensor) -> Tensor:
        return self.potentials(self.rates(z)).amax(2).log_softmax(1)

    def classify(self, z: Tensor) -> Tensor:
        """[B, D] -> [B] int64: the class of the unit with the highest potential. No sub-network runs."""
        return self.unit_class.flatten()[self.potentials(self.rates(z)).flatten(1).argmax(1)]

    def _grow(self, classes: Tensor, generator: torch.Generator) -> None:
        S, J, I = self.weight.shape
        units = max(J, len(classes))

        def grown(old: Tensor, new: Tensor, fill: float) -> Tensor:
            """[S, J, ...] and [K, ...] -> [S+1, units, ...]"""
            result = old.new_full((S + 1, units, *old.shape[2:]), fill)
            result[:S, :J] = old
            result[S, : len(new)] = new
            return result

        # Silent synapses are the reserve that a new task unsilences.
        weight = torch.rand(len(classes), I, generator=generator).to(self.weight) * 0.02
        self.weight = grown(self.weight, weight, 0.0)
        self.functional = grown(self.functional, torch.zeros_like(weight, dtype=torch.bool), False)
        self.unit_class = grown(self.unit_class, classes, -1)

    def _learn(self, z: Tensor, labels: Tensor, tasks: Tensor, generator: torch.Generator, track: Track) -> None:
        T = self.steps
        rule = STDPRule(
            decay_pre=0.0,
            a_plus=8 * self.rate / T,
            a_minus=0.0,
            reduction="mean",
            weight_decay=1 - (1 - 1e-4) ** (1 / T),
        )
        rates = self.rates(z)
        for _ in track(range(self.epochs), "synapses"):
            for batch in torch.randperm(len(z), generator=generator).split(self.batch_size):
                seed = int(torch.randint(2**62, (), generator=generator))
                pre = self.spikes(rates[batch], seed)
                V = self.potentials(pre.mean(0))
                teacher = (self.unit_class == labels[batch, None, None]).to(V.dtype)
                post = teacher - V.flatten(1).softmax(1).view_as(V)
                stdp_(self.weight, pre, post.expand(T, *post.shape), rule)
                if self.on is not None and self.off is not None:
                    self.functional = consolidate(self.weight, self.functional, self.on, self.off)


class MLPSynapses(SynapseBank):
    """Synapses of two layers, D → hidden → 1, as S_t of arXiv 2410.05899, trained by gradient descent.

    All train on from where they are at each task, each to tell its own task from the others, with a class-balanced
    binary cross-entropy. A sub-network's score is o − logsumexp(o) over the sub-networks.

    Args:
        hidden: units per synapse.
        steps: updates per task.
        batch_size: new samples per update; beside them go, per older task but for at most four, as many pseudo-samples
            from the pool of all old classes.
        learning_rate, weight_decay: of AdamW.
    """

    growing: ClassVar = {
        "down": (0,),
        "down_bias": (0,),
        "up": (0,),
        "up_bias": (0,),
        **SynapseBank.growing,
    }

    def __init__(
        self,
        dim: int,
        *,
        hidden: int = 32,
        steps: int = 300,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        super().__init__(dim, **options)
        self.hidden, self.steps, self.batch_size = hidden, steps, batch_size
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.down = nn.Parameter(torch.zeros(0, hidden, dim), requires_grad=False)
        self.down_bias = nn.Parameter(torch.zeros(0, hidden), requires_grad=False)
        self.up = nn.Parameter(torch.zeros(0, hidden), requires_grad=False)
        self.up_bias = nn.Parameter(torch.zeros(0), requires_grad=False)

    @property
    def num_weights(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def outputs(self, z: Tensor) -> Tensor:
        """[B, D] -> [B, S] logits of the gates."""
        return synapse_scores(z, self.down, self.down_bias, self.up, self.up_bias)

    def scores(self, z: Tensor) -> Tensor:
        return self.outputs(z).log_softmax(1)

    def _grow(self, classes: Tensor, generator: torch.Generator) -> None:
        # torch.nn.Linear's initial weights.
        for name, fan_in in (
            ("down", self.dim),
            ("down_bias", self.dim),
            ("up", self.hidden),
            ("up_bias", self.hidden),
        ):
            own = getattr(self, name)
            new = (torch.rand(1, *own.shape[1:], generator=generator) * 2 - 1) / math.sqrt(fan_in)
            self.resize(name, torch.cat([own.data, new.to(own)]))

    def _learn(self, z: Tensor, labels: Tensor, tasks: Tensor, generator: torch.Generator, track: Track) -> None:
        S = len(self.up_bias)
        if S == 1:
            return  # a lone synapse has nothing to tell its task from
        new, old = (tasks == S - 1).nonzero().flatten(), (tasks < S - 1).nonzero().flatten()
        parameters = [self.down, self.down_bias, self.up, self.up_bias]
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        for _ in track(range(self.steps), "synapses"):
            num_old = self.batch_size * min(S - 1, 4)
            draws = ((new, self.batch_size), (old, num_old))
            rows = torch.cat([pool[torch.randint(len(pool), (n,), generator=generator)] for pool, n in draws])
            target = F.one_hot(tasks[rows], S).to(z.dtype)
            positives = target.sum(0)
            balance = torch.where(target > 0, (len(rows) - positives) / (positives + 1), 1.0)
            with torch.enable_grad():
                loss = F.binary_cross_entropy_with_logits(self.outputs(z[rows]), target, weight=balance)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for parameter in parameters:
            parameter.requires_grad_(False)


SYNAPSES: dict[str, type[SynapseBank]] = {"stdp": STDPSynapses, "mlp": MLPSynapses}
