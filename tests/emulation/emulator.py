"""Compiles the CUDA kernels of this checkout for the CPU, in three builds, and calls them on CPU tensors.

A build is a program of its own (server.h) that answers one call after the other; `Emulator.call` is the other end.
"""

import ctypes
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

ROOT = Path(__file__).parents[2]

FLAGS = "-std=c++20 -g1 -fno-omit-frame-pointer -ffp-contract=off -Wall -Wextra -Werror -Wno-unknown-pragmas -Icsrc"
BUILDS = {
    "plain": "-O1",
    # Each access is a call, so that the runtime sees those of shared memory.
    "address": "-O1 -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all "
    "--param=asan-instrumentation-with-call-threshold=0",
    "thread": "-O1 -fsanitize=thread",
}
# Odd seeds run the blocks backwards, all but 0 permute the threads. The plain build does both, for the same bits.
SEEDS = {"plain": (0, 3), "address": (3,), "thread": (0,)}

ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=70",
    "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=70",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=70",
}

# In a sanitizer's stacks: what is not the kernel's.
OUR_FRAME = re.compile(r"\s+#\d+ .*(emulation/(runtime|cuda|server)\.h|cuda/port\.cuh|/usr/|\.so\.|_start)")

IS_SUPPORTED = (platform.system(), platform.machine()) == ("Linux", "x86_64")


class EmulationError(AssertionError):
    """A kernel's mistake; the message names the build, what was called, and the kernel's file and line."""


def compiler() -> str:
    return "g++"  # another compiler's sanitizers have other names for what runtime.h asks of them


@cache
def _compiler_version() -> str:
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout


def sources(root: Path = ROOT) -> list[Path]:
    """All that a build is made of, relative to the root of the checkout."""
    headers = (file for file in (root / "csrc").rglob("*") if file.suffix in (".cuh", ".h"))
    programs = (file for file in (root / "tests/emulation").rglob("*") if file.suffix in (".cuh", ".h", ".cpp"))
    return sorted(file.relative_to(root) for file in (*headers, *programs))


def build(program: str, kind: str, folder: Path, root: Path = ROOT) -> Path:
    """tests/emulation/<program>.cpp in one of BUILDS, kept in `folder` until a source, a flag or the compiler changes.

    The checkout is the one at `root`: nothing that was built or installed before plays a part.
    """
    command = [compiler(), *FLAGS.split(), *BUILDS[kind].split(), f"tests/emulation/{program}.cpp"]
    digest = hashlib.sha256(repr((command, _compiler_version())).encode())
    for file in sources(root):
        digest.update(f"{file}\0".encode() + (root / file).read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{program}-{kind}-{digest.hexdigest()[:16]}"
    with open(folder / f"{program}-{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest may run in several processes
        if not target.exists():
            for stale in folder.glob(f"{program}-{kind}-*"):
                stale.unlink()
            fresh = target.with_suffix(".new")
            done = subprocess.run([*command, "-o", str(fresh)], cwd=root, capture_output=True, text=True)
            if done.returncode:
                raise EmulationError(f"{kind} build: {' '.join(command)}\n{done.stderr}")
            fresh.rename(target)
    return target


@cache
def _without_address_randomisation() -> list[str]:
    """What ThreadSanitizer needs, whose map of the memory does not fit every layout; some containers forbid to ask."""
    command = ["setarch", "-R"]
    is_allowed = shutil.which("setarch") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if is_allowed else []


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_bytes: int = 0


class Emulator:
    """One build of one program, running."""

    def __init__(self, program: str, kind: str, folder: Path, root: Path = ROOT) -> None:
        self.kind = kind
        self.executable = build(program, kind, folder, root)
        self.launched: set[str] = set()
        """The kernels that have run."""
        self.launches: list[Launch] = []
        """Those of the last call."""
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def call(self, name: str, *arguments: int | float | Tensor | None, seeds: Sequence[int] = ()) -> int:
        """Calls an exported function; the stream is left out, tensors that it writes are changed in place.

        Raises EmulationError for a kernel's mistake: one that the build sees, or different results for two seeds.
        """
        tensors = [a for a in arguments if isinstance(a, Tensor) and a.numel()]
        assert all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
        before = [_bytes(tensor) for tensor in tensors]
        first, *others = seeds or SEEDS[self.kind]
        outcome = self._call(name, arguments, first)
        for seed in others:
            for tensor, value, written in zip(tensors, before, outcome[1:], strict=True):
                if written:
                    ctypes.memmove(tensor.data_ptr(), value, len(value))
            if self._call(name, arguments, seed) != outcome:
                raise EmulationError(f"{self.kind} build, {name}: other bits when the threads run in another order")
        return outcome[0]

    def _call(self, name: str, arguments: Sequence[int | float | Tensor | None], seed: int) -> tuple:
        """The function's result, and of each tensor that has numbers what was written to it, or nothing."""
        process = self._start()
        request = [_text(name), struct.pack("<Q", seed)]
        for argument in arguments:
            if isinstance(argument, Tensor):
                data = _bytes(argument)
                request += [struct.pack("<QQ", len(data), argument.data_ptr() % 256), data]
            elif argument is None:
                request.append(struct.pack("<QQ", 0, 0))
            else:
                request.append(struct.pack("<d" if isinstance(argument, float) else "<q", argument))
        written = []
        try:
            process.stdin.write(b"".join(request))
            process.stdin.flush()
            error, launched, (result,) = self._read_text(), self._read_text(), struct.unpack("<q", self._read(8))
            for tensor in (a for a in arguments if isinstance(a, Tensor) and a.numel()):
                (size,) = struct.unpack("<Q", self._read(8))
                written.append(self._read(size))
                if size:
                    ctypes.memmove(tensor.data_ptr(), written[-1], size)
        except (BrokenPipeError, EOFError):
            raise self._death(name) from None
        self.launches = [_launch(line) for line in launched.splitlines()]
        self.launched.update(launch.kernel for launch in self.launches)
        if error:
            raise EmulationError(f"{self.kind} build, {name}: {error}")
        return result, *written

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
            self._process = subprocess.Popen(
                [*(_without_address_randomisation() if self.kind == "thread" else []), str(self.executable)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=os.environ | ENVIRONMENT,
            )
        return self._process

    def _read(self, size: int) -> bytes:
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def _read_text(self) -> str:
        (size,) = struct.unpack("<Q", self._read(8))
        return self._read(size).decode()

    def _death(self, name: str) -> EmulationError:
        status = self._process.wait()
        self._stderr.seek(0)
        message = self._stderr.read()
        if status == -signal.SIGALRM:
            message += "no answer within two minutes: does a thread wait for another in a loop?"
        self.close()
        lines = [line for line in message.splitlines() if not OUR_FRAME.match(line)]
        return EmulationError("\n".join([f"{self.kind} build, {name}, exit status {status}:", *lines]))


def _launch(line: str) -> Launch:
    name, *fields = line.split("\t")
    numbers = [int(field) for field in fields]
    kernel = re.search(r"\w+_kernel", name)  # without template arguments; a lambda of the tests has a name of its own
    return Launch(kernel[0] if kernel else name, tuple(numbers[:3]), tuple(numbers[3:6]), numbers[6])


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _bytes(tensor: Tensor) -> bytes:
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes) if tensor.numel() else b""
