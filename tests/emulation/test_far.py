"""The routing kernels' launches for a million pairs and ten thousand sub-networks: grids, tables, the last elements.

Nothing of that size is allocated: pages appear where a kernel touches them, and only some blocks run. What is asserted
of the grids is worked out by hand from the sizes, and every launch is held to CUDA's limits on the way.
"""

from collections.abc import Callable

import pytest
import torch
from emulation.emulator import IS_SUPPORTED, Emulator, Launch

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(not IS_SUPPORTED, reason="the emulation needs an x86-64 processor"),
]

P, S, N, D = 1_000_000, 10_000, 197, 768
B = P  # a pair per sample; the mask has 10^10 cells

# With the sanitizers too: an index in 32 bits overflows there.
each_build = pytest.mark.parametrize("kind", ["plain", "address"])


@each_build
def test_plan_routes(kind: str, emulators: Callable[[str, str], Emulator]) -> None:
    emulator = emulators("plan_routes", kind)
    # Tiles of 64 samples and 128 sub-networks: 15,625 down, 79 across. A number for each tile and column, tile and row.
    assert emulator.call("plan_routes_scratch", B, S) == 15_625 * S + 79 * B
    offsets, sample_offsets, overflow = torch.zeros(S + 1).long(), torch.zeros(B + 1).long(), torch.zeros(()).bool()
    sample, subnetwork, order = (torch.zeros(P).long() for _ in range(3))
    emulator.call("far_plan", B, S, P, offsets, sample_offsets, overflow, sample, subnetwork, order)

    tiles, threads = 15_625 * 79, (256, 1, 1)
    assert emulator.launches == [
        Launch("plan_routes_count_kernel", (tiles, 1, 1), threads),
        Launch("plan_routes_scan_kernel", (40 + 3_907, 1, 1), threads),  # columns, then rows, one per thread
        Launch("plan_routes_offsets_kernel", (2, 1, 1), threads),
        Launch("plan_routes_scatter_kernel", (tiles, 1, 1), threads),
    ]
    assert (sample[:2].tolist(), subnetwork[:2].tolist(), order[:2].tolist()) == ([0, B - 1], [0, S - 1], [0, 1])
    assert (offsets[[0, 1, -2, -1]].tolist(), sample_offsets[[0, 1, -2, -1]].tolist()) == ([0, 1, 1, 2], [0, 1, 1, 2])
    assert not overflow


@each_build
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_combine_routes(dtype: torch.dtype, shift: int, kind: str, emulators: Callable[[str, str], Emulator]) -> None:
    emulator = emulators("combine_routes", kind)
    word = str(dtype).removeprefix("torch.")
    assert emulator.call(f"far_{word}", P, N * D, shift, torch.arange(P + 1), torch.zeros(()).bool())

    at_once = 1 if shift else 16 // dtype.itemsize  # numbers per thread
    blocks, threads = P * N * D // at_once // 128, (128, 1, 1)
    assert P * N * D // at_once % 128 == 0
    assert emulator.launches == [
        Launch("combine_routes_kernel", (blocks, 1, 1), threads),
        Launch("combine_routes_grad_y_kernel", (blocks, 1, 1), threads),
        Launch("combine_routes_grad_weight_kernel", (P // 4, 1, 1), threads),  # a warp per pair
    ]
