"""The launchers, csrc/cuda/<op>.cu, compiled for the emulation: a library that serves the CPU's tensors with them."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from emulation.emulator import FLAGS, ROOT, compiler

CACHE = ROOT / "build" / "launchers"


def load() -> None:
    """Replaces the CPU kernels of this process by the emulated ones."""
    import artsy_ext.ops  # noqa: F401 - the last that registers a kernel is the one that runs

    torch.ops.load_library(build())


def build() -> str:
    """Compiles the library, once per state of its sources, and gives its path."""
    package = Path(torch.__file__).parent
    include = package / "include"
    command = [
        compiler(), *FLAGS.split(), "-O1", "-fPIC", "-fvisibility=hidden",
        "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(include),
        "-isystem", str(include / "torch/csrc/api/include"),
    ]  # fmt: skip
    key = hashlib.sha256(repr((command, torch.__version__)).encode())
    for path in sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cu", ".cuh", ".h")):
        key.update(path.read_bytes())
    library = CACHE / f"{key.hexdigest()[:16]}.so"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:  # the processes of one session ask at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            beside = library.with_suffix(f".{os.getpid()}")
            beside.mkdir()

            def run(*arguments: str) -> None:
                done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
                if done.returncode != 0:
                    raise RuntimeError(f"csrc/cuda does not compile for the emulation:\n{done.stderr}")

            def compiled(source: Path) -> str:
                object_file = str(beside / f"{source.stem}.o")
                run("-c", "-x", "c++", str(source), "-o", object_file)
                return object_file

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(compiled, sorted((ROOT / "csrc/cuda").glob("*.cu"))))
            run("-shared", *objects, str(package / "lib/libtorch_cpu.so"), "-o", str(beside / library.name))
            (beside / library.name).rename(library)
            shutil.rmtree(beside)
    return str(library)
