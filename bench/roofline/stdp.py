"""The least time that stdp's CUDA kernels can take on a GPU, from the bytes they move and the products they compute.

    python bench/roofline/stdp.py

A paper estimate: every array crosses the memory bus once per kernel that reads or writes it, at the bandwidth of the
data sheet, and tensor cores run at its dense fp16 peak; the longer of the two is the kernel's floor. Launches, waiting
and what a cache saves between kernels are left out. The case is the plain rule in float32 on bool spikes, pre shared by
all sub-networks, where potentiation and depression are one product.
"""

from typing import NamedTuple


class Gpu(NamedTuple):
    name: str
    bytes_per_s: float
    fp16_per_s: float
    source: str


# Dense; the data sheets' larger figure is with sparsity. mma.sync, which the kernels use, does not reach it on Hopper.
GPUS = (
    Gpu("H100 SXM", 3.35e12, 989.4e12, "NVIDIA H100 data sheet: 3.35 TB/s, 989.4 TFLOPS fp16 (dense)"),
    Gpu("H200 SXM", 4.8e12, 989.4e12, "NVIDIA H200 data sheet: 4.8 TB/s, 989.4 TFLOPS fp16 (dense)"),
)


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


def floor(kernel: Kernel, gpu: Gpu) -> float:
    """Seconds."""
    return max(kernel.bytes / gpu.bytes_per_s, kernel.products / gpu.fp16_per_s)


def report() -> str:
    lines = []
    for sizes in CASES:
        found = kernels(sizes)
        header = ["kernel", "MB", "GFLOP", *(f"{gpu.name}, µs" for gpu in GPUS)]
        lines += [f"{sizes}:", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        for kernel in found:
            times = (f"{1e6 * floor(kernel, gpu):.1f}" for gpu in GPUS)
            row = [kernel.name, f"{kernel.bytes / 1e6:.1f}", f"{kernel.products / 1e9:.1f}", *times]
            lines.append(f"| {' | '.join(row)} |")
        totals = (f"**{1e6 * sum(floor(kernel, gpu) for kernel in found):.1f}**" for gpu in GPUS)
        megabytes, products = sum(k.bytes for k in found) / 1e6, sum(k.products for k in found) / 1e9
        row = ["all", f"{megabytes:.1f}", f"{products:.1f}", *totals]
        lines += [f"| {' | '.join(row)} |", ""]
    lines += [f"Assumed: {'; '.join(gpu.source for gpu in GPUS)}."]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
