"""Seeded defects: each is one change to a kernel, and one build names it with its line.

Unchanged, the kernels pass in all builds: test_kernels.py.
"""

import os
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from emulation.emulator import BUILDS, IS_SUPPORTED, ROOT, EmulationError, Emulator, sources
from emulation.runs import RUNS

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(not IS_SUPPORTED, reason="the emulation needs an x86-64 processor"),
]


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    build: str
    says: str
    line: str
    """A text of the changed file that stands in the line which the build names."""


PLAN, COMBINE, ENCODE, STDP = (
    f"csrc/cuda/{name}.cuh" for name in ("plan_routes", "combine_routes", "encode_spikes", "stdp")
)
HISTOGRAM, PRODUCT, ROTATE, SEGMENTS = (
    f"tests/emulation/kernels/{name}.cuh" for name in ("histogram", "product", "rotate", "segments")
)

MUTANTS = [
    Mutant(
        "missing barrier", PLAN,
        "  __syncthreads();\n  const int column", "  const int column",
        "thread", "data race", "sum += of_warp[warp][column / 4];",
    ),
    Mutant(
        "missing barrier before memory is used again", PLAN,
        "    __syncthreads();  // of_warp is read before the next round writes it\n", "",
        "thread", "data race", "if (lane == 31) of_warp[warp] = up_to_me;",
    ),
    Mutant(
        "divergent barrier", PLAN,
        "  const int column = int(threadIdx.x);\n",
        "  const int column = int(threadIdx.x);\n  if (column < kColumns) __syncthreads();\n",
        "plain", "divergent barrier", "if (column < kColumns) __syncthreads();",
    ),
    Mutant(
        "return before a barrier", PLAN,
        "  const int64_t s = int64_t(tile.across) * kColumns + threadIdx.x;\n",
        "  const int64_t s = int64_t(tile.across) * kColumns + threadIdx.x;\n  if (tile.b >= mask.B) return;\n",
        "plain", "divergent barrier", "  __syncthreads();\n\n  uint32_t above = 0;",
    ),
    Mutant(
        "mask without the calling lane", PLAN,
        "__shfl_up_sync(0xffffffffu, up_to_me", "__shfl_up_sync(0x0000ffffu, up_to_me",
        "plain", "not in its own mask", "__shfl_up_sync(0x0000ffffu, up_to_me",
    ),
    Mutant(
        "shared index off by one", PLAN,
        "    for (int warp = 0; warp < kWarps; ++warp) sum +=", "    for (int warp = 0; warp <= kWarps; ++warp) sum +=",
        "address", "index 8 out of bounds", "warp <= kWarps",
    ),
    Mutant(
        "read of another block's output", PLAN,
        "if (blockIdx.x == 0) *overflow = capacity >= 0 && before > capacity;",
        "if (blockIdx.x == 1) *overflow = capacity >= 0 && offsets[S] > capacity;",
        "thread", "data race", "numbers[mine + k] = left += numbers[mine + k];",
    ),
    Mutant(
        "words read from odd addresses", PLAN,
        "S % 4 == 0 && reinterpret_cast<uintptr_t>(data) % 4 == 0", "true",
        "address", "misaligned address", "*reinterpret_cast<const uint32_t*>(next);",
    ),
    Mutant(
        "vectors read from odd addresses", COMBINE,
        "are_aligned(16, tensors...)", "are_aligned(1, tensors...)",
        "address", "misaligned address", "const auto row = load<T, N>(y + p * D + d);",
    ),
    Mutant(
        "end of a tensor off by one", COMBINE,
        "  if (i >= B * D) return;\n", "  if (i > B * D) return;\n",
        "address", "heap-buffer-overflow", "const auto row = load<T, N>(base + i);",
    ),
    Mutant(
        "grid in the wrong dimension", COMBINE,
        "ARTSY_LAUNCH((combine_routes_kernel<T, 1>), ceil_div(B * D, kThreads), kThreads,",
        "ARTSY_LAUNCH((combine_routes_kernel<T, 1>), Extent(1, B * D << 12), kThreads,",
        "plain", "a grid has 1 to [2147483647, 65535, 65535] blocks", "",
    ),
    Mutant(
        "four at a time behind the end", ENCODE,
        "  if (size % N == 0 && are_aligned(", "  if (are_aligned(",
        "address", "store to misaligned address", "store(spikes + t * size + i, row);",
    ),
    Mutant(
        "wrong place in a fragment", STDP,
        "[warp * 8 + g];", "[warp * 8 + 2 * g];",
        "address", "read of shared memory that no thread has written", "row[r] = reinterpret_cast<const uint2*>(",
    ),
    Mutant(
        "samples replaced while they are read", STDP,
        "      __syncthreads();  // all have read the samples before\n", "",
        "thread", "data race", "const Real fired = plus[b][(row + r) / 4].number[(row + r) % 4],",
    ),
    Mutant(
        "shared memory that nobody has set", HISTOGRAM,
        "  for (int bin = int(threadIdx.x); bin < bins; bin += int(blockDim.x)) of_block[bin] = 0;\n", "",
        "address", "read of shared memory that no thread has written", "atomicAdd(&of_block[x[i]], 1);",
    ),
    Mutant(
        "blocks that overwrite each other's sum", HISTOGRAM,
        "atomicAdd(&counts[bin], of_block[bin]);", "counts[bin] += of_block[bin];",
        "thread", "data race", "counts[bin] += of_block[bin];",
    ),
    Mutant(
        "too little dynamic shared memory", HISTOGRAM,
        "bins * int64_t(sizeof(int))", "(bins - 1) * int64_t(sizeof(int))",
        "address", "use-after-poison", "of_block[bin] = 0;",
    ),
    Mutant(
        "write behind shared memory", ROTATE,
        "tile[warp][lane] = mine;", "(&tile[0][0])[warp * 32 + lane + 1] = mine;",
        "plain", "behind the end of this shared array", "ARTSY_SHARED(float, tile, [2][32]);",
    ),
    Mutant(
        "lanes that exchange without __syncwarp", ROTATE,
        "    tile[warp][lane] = mine;\n    __syncwarp();\n", "    tile[warp][lane] = mine;\n",
        "thread", "data race", "mine = tile[warp][(lane + 1) % 32];",
    ),
    Mutant(
        "32-bit index", SEGMENTS,
        "x[(segment * length + i) * stride % size]", "x[(int(segment) * length + i) * int(stride) % size]",
        "address", "signed integer overflow", "int(stride) % size]",
    ),
    Mutant(
        "shuffle from a lane that has left", SEGMENTS,
        "  float sum = 0;\n", "  if (lane >= length % 32) return;\n  float sum = 0;\n",
        "plain", "shuffle from a lane that has ended", "sum += __shfl_down_sync",
    ),
    Mutant(
        "lanes of a mask that never come", SEGMENTS,
        "  for (int distance = 16;", "  if (lane >= 16) __syncthreads();\n  for (int distance = 16;",
        "plain", "dead-lock", "sum += __shfl_down_sync",
    ),
    Mutant(
        "half of a mask", SEGMENTS,
        "__shfl_down_sync(0xffffffffu, sum", "__shfl_down_sync(lane < 16 ? 0x0000ffffu : 0xffff0000u, sum",
        "plain", "shuffle from a lane that is not in the mask", "__shfl_down_sync(lane < 16",
    ),
    Mutant(
        "wait for too few copies", PRODUCT,
        "cp_async_wait<0>();", "cp_async_wait<1>();",
        "address", "use-after-poison", "fragment_a[4] = {words_a",
    ),
    Mutant(
        "copies that nobody waits for", PRODUCT,
        "cp_async_wait<0>();", "",
        "plain", "ended before it waited", "cp_async_16(&of_a[stage][lane]",
    ),
    Mutant(
        "copies into a tile that is still read", PRODUCT,
        "    __syncwarp();  // all have read before the next round writes here\n", "",
        "thread", "data race", "cp_async_16(&of_",
    ),
]  # fmt: skip


def changed(mutant: Mutant) -> str:
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    return text.replace(mutant.old, mutant.new)


def compiled(mutant: Mutant, folder: Path) -> Emulator:
    for source in sources():
        (folder / source).parent.mkdir(parents=True, exist_ok=True)
        (folder / source).write_text((ROOT / source).read_text())
    (folder / mutant.file).write_text(changed(mutant))
    return Emulator(RUNS[mutant.file][0], mutant.build, folder / "build", folder)


@pytest.fixture(scope="module")
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mutant], Emulator]:
    """Compiles a mutant; all that are selected at once, unless other processes of pytest have taken some of them."""
    pool = ThreadPoolExecutor(os.cpu_count())

    @cache
    def submit(mutant: Mutant) -> Future[Emulator]:
        return pool.submit(compiled, mutant, tmp_path_factory.mktemp("mutant"))

    if "PYTEST_XDIST_WORKER" not in os.environ:
        for item in request.session.items:
            if item.path == Path(__file__) and "mutant" in getattr(getattr(item, "callspec", None), "params", {}):
                submit(item.callspec.params["mutant"])
    return lambda mutant: submit(mutant).result()


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_mutant_is_caught(mutant: Mutant, start: Callable[[Mutant], Emulator]) -> None:
    emulator = start(mutant)
    with pytest.raises(EmulationError) as caught:
        RUNS[mutant.file][1](emulator)
    emulator.close()
    message = str(caught.value)
    assert message.startswith(f"{mutant.build} build")
    assert mutant.says in message
    if mutant.line:
        text = changed(mutant)
        number = text[: text.index(mutant.line)].count("\n") + 1
        assert re.search(rf"{re.escape(mutant.file)}:{number}\b", message)


def test_there_are_enough_mutants() -> None:
    assert len(MUTANTS) >= 14
    assert {mutant.build for mutant in MUTANTS} == set(BUILDS)
