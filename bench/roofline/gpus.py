"""What the estimates in this folder take from the data sheets of GPUs, and the time that it makes."""

from collections.abc import Iterable
from typing import NamedTuple


class Gpu(NamedTuple):
    name: str
    bytes_per_s: float
    products_per_s: float
    """Multiplications and additions of fp16 or bf16 on tensor cores; dense, the larger figure is with sparsity."""
    source: str

    def floor(self, moved: int, products: int = 0) -> float:
        """Seconds for so many bytes over the memory bus, or for so many multiplications and additions: the longer."""
        return max(moved / self.bytes_per_s, products / self.products_per_s)


# mma.sync, which the CUDA kernels use, does not reach Hopper's peak.
GPUS = (
    Gpu("A100 SXM", 2.039e12, 312e12, "NVIDIA A100 80GB data sheet: 2.039 TB/s, 312 TFLOPS (dense)"),
    Gpu("H100 SXM", 3.35e12, 989.4e12, "NVIDIA H100 data sheet: 3.35 TB/s, 989.4 TFLOPS (dense)"),
    Gpu("H200 SXM", 4.8e12, 989.4e12, "NVIDIA H200 data sheet: 4.8 TB/s, 989.4 TFLOPS (dense)"),
)
ASSUMED = f"Assumed, for fp16 and bf16: {'; '.join(gpu.source for gpu in GPUS)}."


def table(header: str, rows: Iterable[tuple[str, int, int]]) -> list[str]:
    """Of each (name, bytes, multiplications and additions) a line: both numbers and the least time they take."""
    columns = [header, "MB", "GFLOP", *(f"{gpu.name}, µs" for gpu in GPUS)]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, moved, products in rows:
        times = (f"{1e6 * gpu.floor(moved, products):.1f}" for gpu in GPUS)
        lines.append(f"| {' | '.join([name, f'{moved / 1e6:.1f}', f'{products / 1e9:.1f}', *times])} |")
    return lines
