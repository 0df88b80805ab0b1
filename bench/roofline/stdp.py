"""The least time that stdp's CUDA kernels can take on a GPU, from the bytes they move and the products they compute.

    python bench/roofline/stdp.py

A paper estimate: every array crosses the memory bus once per kernel that reads or writes it, at the bandwidth of the
data sheet, and tensor cores run at its dense fp16 peak; the longer of the two is the kernel's floor. Launches, waiting
and what a cache saves between kernels are left out. The case is the plain rule in float32 on bool spikes, pre shared by
all sub-networks, where potentiation and depression are one product.
"""

from typing import NamedTuple

from gpus import ASSUMED, GPUS, table


class Sizes(NamedTuple):
    T: int
    B: int
    S: int
    J: int
    I: int

    def __str__(self) -> str:
        return f"T={self.T}, B={self.B}, S={self.S}, {self.I} → {self.J}"


CASES = (Sizes(16, 64, 50, 64, 768), Sizes(64, 128, 200, 256, 1024))


class Kernel(NamedTuple):
    name: str
    bytes: int
    products: int = 0
    """Multiplications and additions of tensor cores."""


def kernels(sizes: Sizes) -> list[Kernel]:
    """As csrc/cuda/stdp.cuh launches them."""
    T, B, S, J, I = sizes
    spikes, rows, weights = T * B * I, T * B, S * J * I
    tiles = -(-I // 128) * -(-J // 64) * S
    splits = max(1, min(-(-264 // tiles), rows // 256))
    partial = 0 if splits == 1 else 4 * splits * weights
    update = [] if splits == 1 else [Kernel("update", partial + 2 * 4 * weights)]
    return [
        Kernel("follow, pre", spikes + 2 * 4 * spikes + 4 * B * I),
        Kernel("later", 3 * 4 * spikes),
        Kernel("split", 2 * 4 * spikes),
        Kernel("follow, post", rows * S * J + 4 * B * S * J),
        # Z in two planes of fp16 is multiplied with each spike twice.
        Kernel("product", 4 * spikes + rows * S * J + (partial or 2 * 4 * weights), 2 * 2 * rows * weights),
        *update,
    ]


def report() -> str:
    lines = []
    for sizes in CASES:
        rows = kernels(sizes)
        totals = (f"**{1e6 * sum(gpu.floor(*numbers) for _, *numbers in rows):.1f}**" for gpu in GPUS)
        megabytes, products = sum(k.bytes for k in rows) / 1e6, sum(k.products for k in rows) / 1e9
        total = f"| {' | '.join(['all', f'{megabytes:.1f}', f'{products:.1f}', *totals])} |"
        lines += [f"{sizes}:", "", *table("kernel", rows), total, ""]
    return "\n".join([*lines, ASSUMED])


if __name__ == "__main__":
    print(report())
