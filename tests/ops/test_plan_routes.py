"""plan_routes, and the whole routed chain (plan, gather, adapt, combine, answer) in compiled and exported programs."""

import itertools
from typing import Any

import properties
import pytest
import torch
import torch._functorch.config
import torch._inductor.config
from properties import LAYOUTS
from routing_cases import (
    EMPTY_MASKS,
    HAND_MASK,
    any_mask,
    assert_promises,
    assert_refused,
    assert_same_on_every_thread_count,
    overflowed,
    pairs_of,
)
from torch import Tensor, nn

from artsy_ext.ops import Routes, combine_routes, plan_routes, prototype_logits, reference, routed_adapter

COMPILED_AND_DEFINED = pytest.mark.parametrize(
    "plan", [plan_routes, reference.plan_routes], ids=["compiled", "reference"]
)


def loop_plan(mask: Tensor, capacity: int | None = None) -> dict[str, list[int] | bool]:
    """From the words of the docstring, one pair after the other."""
    B, S = mask.shape
    pairs = pairs_of(mask)
    padding = [0] * (0 if capacity is None else capacity - len(pairs))
    by_sample = sorted(range(len(pairs)), key=lambda p: pairs[p])
    return {
        "sample": [b for b, _ in pairs] + padding,
        "subnetwork": [s for _, s in pairs] + padding,
        "offsets": [sum(s < before for _, s in pairs) for before in range(S + 1)],
        "order": by_sample + list(range(len(pairs), len(pairs) + len(padding))),
        "sample_offsets": [sum(b < before for b, _ in pairs) for before in range(B + 1)],
        "overflow": False,
    }


def assert_plan(routes: Routes, expected: dict[str, list[int] | bool]) -> None:
    assert {name: tensor.tolist() for name, tensor in routes._asdict().items()} == expected
    assert [tensor.dtype for tensor in routes] == [torch.int64] * 5 + [torch.bool]
    assert routes.overflow.shape == ()


# HAND_MASK by sub-network: 0 has samples 0 and 2 (pairs 0, 1), 1 has sample 2 (pair 2), 2 has sample 0 (pair 3), 3 has
# none. By sample: 0 has pairs 0 and 3, 1 none, 2 has pairs 1 and 2.
HAND_PLAN = {"offsets": [0, 2, 3, 4, 4], "sample_offsets": [0, 2, 2, 4], "overflow": False}
EXACT = {"sample": [0, 2, 2, 0], "subnetwork": [0, 0, 1, 2], "order": [0, 3, 1, 2]}
PADDED = {"sample": [0, 2, 2, 0, 0, 0], "subnetwork": [0, 0, 1, 2, 0, 0], "order": [0, 3, 1, 2, 4, 5]}


@COMPILED_AND_DEFINED
@pytest.mark.parametrize(("capacity", "pairs"), [(None, EXACT), (4, EXACT), (6, PADDED)])
def test_table(plan: Any, capacity: int | None, pairs: dict[str, list[int]], device: str) -> None:
    assert_plan(plan(HAND_MASK.to(device), capacity=capacity), pairs | HAND_PLAN)


@any_mask
@pytest.mark.parametrize("padding", [None, 0, 1, 40])
def test_kernel_definition_and_loop_agree(mask: Tensor, padding: int | None, device: str) -> None:
    mask = mask.to(device)
    capacity = None if padding is None else len(pairs_of(mask)) + padding
    expected = loop_plan(mask, capacity)
    assert_plan(plan_routes(mask, capacity=capacity), expected)
    assert_plan(reference.plan_routes(mask, capacity=capacity), expected)


@pytest.mark.parametrize("S", [*range(1, 18), 63, 64, 65])
def test_every_column_count(S: int, device: str) -> None:
    # A kernel reads eight columns at once, or four, then the rest.
    for density in (0.05, 0.5):
        mask = (torch.rand(9, S) < density).to(device)
        assert_plan(plan_routes(mask), loop_plan(mask))


VIEWS = {
    "transposed": lambda m: m.t(),
    "sliced": LAYOUTS["sliced"],
    "steps": lambda m: m[1::2, 1::3],
    "expanded rows": lambda m: m[:1].expand(5, -1),
    "expanded columns": lambda m: m[:, :1].expand(-1, 9),
}


@pytest.mark.parametrize("view", VIEWS)
def test_non_contiguous(view: str, device: str) -> None:
    mask = VIEWS[view]((torch.rand(13, 21) < 0.4).to(device))
    assert not mask.is_contiguous()
    assert_plan(plan_routes(mask), loop_plan(mask))
    assert_plan(reference.plan_routes(mask), loop_plan(mask))


@any_mask
def test_promises(mask: Tensor, device: str) -> None:
    mask = mask.to(device, copy=True)
    assert_promises(plan_routes, {"mask": mask})
    assert_promises(plan_routes, {"mask": mask, "capacity": mask.numel() + 3})


@pytest.mark.parametrize("shape", EMPTY_MASKS)
@pytest.mark.parametrize("capacity", [None, 0, 2])
def test_empty(shape: tuple[int, int], capacity: int | None, device: str) -> None:
    B, S = shape
    routes = plan_routes(torch.ones(shape, dtype=torch.bool, device=device), capacity=capacity)
    padding = capacity or 0
    assert routes.sample.tolist() == routes.subnetwork.tolist() == [0] * padding
    assert routes.order.tolist() == list(range(padding))
    assert routes.offsets.tolist() == [0] * (S + 1)
    assert routes.sample_offsets.tolist() == [0] * (B + 1)
    assert routes.check() is routes


def test_capacity_too_small_is_refused_at_once() -> None:
    for capacity, words in ((3, "at least"), (0, "at least"), (-1, ">= 0")):
        arguments = {"mask": HAND_MASK, "capacity": capacity}
        assert_refused(plan_routes, arguments, f"capacity must be {words}", f"got {capacity}")
    assert_refused(plan_routes, {"mask": HAND_MASK, "capacity": 3}, "number of functional pairs, 4,")


@pytest.mark.parametrize("shape", [(130, 150), (65, 37), (2, 1100)])
def test_more_than_a_tile(shape: tuple[int, int], device: str) -> None:
    # The CUDA kernels cut the mask into tiles of 64 by 128 and scan 1024 numbers at once; a CPU reads it row by row.
    mask = (torch.rand(shape) < 0.1).to(device)
    properties.assert_same_bits(plan_routes(mask), reference.plan_routes(mask))


@pytest.mark.parametrize("byte", [1, 2, 64, 128, 255])
def test_any_byte_but_0_is_true(byte: int, device: str) -> None:
    mask = (HAND_MASK.to(torch.uint8) * byte).view(torch.bool).to(device)
    assert_plan(plan_routes(mask), EXACT | HAND_PLAN)


@any_mask
def test_overflow_on_a_gpu(mask: Tensor, gpu: str) -> None:
    # Nothing waits for the device: the pairs that fit, the true counts, valid indices, and the mark.
    mask = mask.to(gpu)
    capacity = max(0, len(pairs_of(mask)) - 3)
    routes, expected = plan_routes(mask, capacity=capacity), reference.plan_routes(mask, capacity=capacity)
    assert bool(routes.overflow) == (capacity < len(pairs_of(mask)))
    for name in ("sample", "subnetwork", "offsets", "sample_offsets", "overflow"):
        assert torch.equal(getattr(routes, name), getattr(expected, name)), name
    assert routes.order.sort().values.tolist() == list(range(capacity))
    if routes.overflow:
        with pytest.raises(ValueError, match="capacity must be at least"):
            routes.check()
        assert combine_routes(torch.ones(capacity, 3, device=gpu), routes).isnan().all()


@any_mask
@pytest.mark.parametrize("padding", [0, 5])
def test_parts(mask: Tensor, padding: int) -> None:
    # Chunks of the pairs are plans of these pairs alone.
    pairs = pairs_of(mask)
    routes = plan_routes(mask, capacity=len(pairs) + padding)
    for size in (1, 3, 7, len(pairs) + 1):
        for begin in range(0, len(routes.sample), size)[:20]:
            end = min(begin + size, len(routes.sample))
            own = torch.zeros_like(mask)
            for b, s in pairs[begin:end]:
                own[b, s] = True
            assert_plan(routes.part(begin, end), loop_plan(own, end - begin))


def test_definition_marks_overflow() -> None:
    # What a device that cannot wait does: the pairs that fit, the true counts, and the mark.
    routes = reference.plan_routes(HAND_MASK, capacity=3)
    assert routes.overflow
    assert routes.sample.tolist() == [0, 2, 2]
    assert routes.offsets.tolist() == HAND_PLAN["offsets"]


def test_check() -> None:
    for capacity in (None, 4, 9):
        routes = plan_routes(HAND_MASK, capacity=capacity)
        assert routes.check() is routes
    for routes in (overflowed(HAND_MASK), reference.plan_routes(HAND_MASK, capacity=3)):
        with pytest.raises(ValueError, match=r"^plan_routes: capacity .* pairs, 4, got 3$"):
            routes.check()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (HAND_MASK.float(), ("bool", "got float32")),
        (HAND_MASK.to(torch.uint8), ("bool", "got uint8")),
        (HAND_MASK[0], ("[B, S]", "got [4]")),
        (HAND_MASK[None], ("[B, S]", "got [1, 3, 4]")),
        (torch.tensor(True), ("[B, S]", "got []")),
        (HAND_MASK.float().to("meta"), ("bool", "got float32")),
    ],
)
def test_bad_mask(mask: Tensor, words: tuple[str, ...]) -> None:
    assert_refused(plan_routes, {"mask": mask}, "mask must be", *words)


@pytest.mark.parametrize("size", [(701, 1801), (3, 400_000), (900_001, 1)])
def test_threads_change_nothing(size: tuple[int, int]) -> None:
    mask = torch.rand(size) < 0.01  # large enough to be shared
    assert_same_on_every_thread_count(lambda: plan_routes(mask))
    assert all(map(torch.equal, plan_routes(mask), reference.plan_routes(mask)))


def test_autocast_leaves_the_plan_alone() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert_plan(plan_routes(HAND_MASK), EXACT | HAND_PLAN)


@pytest.mark.parametrize("capacity", [None, 4, 7])
@pytest.mark.parametrize("mask", [HAND_MASK, HAND_MASK.t(), torch.ones(0, 3, dtype=torch.bool)])
def test_opcheck_plan_routes(mask: Tensor, capacity: int | None, device: str) -> None:
    torch.library.opcheck(torch.ops.artsy.plan_routes.default, (mask.to(device), capacity))


# The chain as a network runs it.

S, N, D, R, C = 4, 3, 8, 2, 5


class Chain(nn.Module):
    """plan, gather, adapt, combine, answer; at most two functional sub-networks per sample."""

    def __init__(self, with_capacity: bool = True) -> None:
        super().__init__()
        self.with_capacity = with_capacity
        generator = torch.Generator().manual_seed(3)
        shapes = {"down": (S, R, D), "down_bias": (S, R), "up": (S, D, R), "up_bias": (S, D), "prototypes": (S, C, D)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator)))
        self.base_prototypes = nn.Parameter(torch.randn(C, D, generator=generator))
        weight = torch.rand(S, C, generator=generator)
        self.weight = nn.Parameter(torch.where(weight < 0.3, 0, weight))

    def forward(self, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        routes = plan_routes(mask, capacity=2 * mask.shape[0] if self.with_capacity else None)
        x = h[routes.sample]
        y = routed_adapter(x, routes, self.down, self.down_bias, self.up, self.up_bias, activation="gelu", base=x)
        combined = combine_routes(y, routes)
        logits = prototype_logits(
            y.mean(1), routes, self.prototypes, self.weight,
            base_features=combined.mean(1), base_prototypes=self.base_prototypes,
        )  # fmt: skip
        return combined, logits


def chain_input(B: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    choice = torch.randint(-1, S, (B, 2), generator=generator)  # −1: none
    return torch.randn(B, N, D, generator=generator), (choice[:, :, None] == torch.arange(S)).any(1)


def run(program: Any, chain: Chain, h: Tensor, mask: Tensor) -> list[Tensor]:
    """Outputs, then the gradients of h and of every parameter."""
    leaf = h.clone().requires_grad_()
    combined, logits = program(leaf, mask)
    loss = combined.square().sum() + logits.exp().sum()
    return [combined, logits, *torch.autograd.grad(loss, [leaf, *chain.parameters()])]


# Programs that inductor kept from earlier runs do not know that an op has changed since.
@torch._inductor.config.patch(fx_graph_cache=False)
@torch._functorch.config.patch(enable_autograd_cache=False)
def test_compiled_chain_equals_eager() -> None:
    torch._dynamo.reset()
    chain = Chain()
    compiled = torch.compile(chain, fullgraph=True)
    # More batch sizes than Dynamo's limit of recompiles: with fullgraph, one program per size would be an error. It
    # makes two, for 1 and for any other; 1 comes first because after 6 there would be a third, for 6 alone.
    for seed, B in enumerate([1, 6, 63, 2, 17, 3, 32, 5, 40, 9]):
        inputs = chain_input(B, seed)
        for ours, eager in zip(run(compiled, chain, *inputs), run(chain, chain, *inputs), strict=True):
            torch.testing.assert_close(ours, eager)


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_chain_without_capacity_compiles_in_one_graph() -> None:
    # The number of pairs is not known when the program is made: nothing may depend on it.
    torch._dynamo.reset()
    chain = Chain(with_capacity=False)
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager", dynamic=True)
    for seed, B in enumerate([6, 63, 17]):
        inputs = chain_input(B, seed)
        if B == 17:
            inputs[1].zero_()  # no pair at all
        for ours, eager in zip(run(compiled, chain, *inputs), run(chain, chain, *inputs), strict=True):
            torch.testing.assert_close(ours, eager)


def test_chain_exports() -> None:
    chain = Chain()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(chain, chain_input(6, 0), dynamic_shapes=({0: batch}, {0: batch}))
    for seed, B in itertools.product(range(2), (2, 9)):
        inputs = chain_input(B, seed)
        for ours, eager in zip(program.module()(*inputs), chain(*inputs), strict=True):
            torch.testing.assert_close(ours, eager)
