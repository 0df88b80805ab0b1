"""What every test relies on: fresh memory is poisoned, and random numbers start from the same seed."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from emulation.emulator import BUILDS, IS_SUPPORTED, Emulator

from artsy_ext import _library, _toolkit

# The tests' tensors are small: more threads bring nothing, and on a busy machine they wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills new tensors with NaN or the largest integer, in compiled kernels too: what is left unwritten shows."""
    previous = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(previous)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# Some devices take a session of their own (tests/interpreted, tests/emulation/test_launchers.py).
SESSION = os.environ.get("ARTSY_TEST_DEVICE")
GPUS: list[Any] = {
    "interpreted": [pytest.param("interpreted", marks=pytest.mark.interpreted)],
    "launchers": [pytest.param("launchers", marks=pytest.mark.emulated)],
}.get(
    SESSION or "",
    [
        *(
            pytest.param(
                f"emulated-{kind}",
                marks=[
                    pytest.mark.emulated,
                    pytest.mark.skipif(not IS_SUPPORTED, reason="the emulation needs an x86-64 processor"),
                ],
            )
            for kind in BUILDS
        ),
        *(["cuda"] if torch.cuda.is_available() else []),
    ],
)
if SESSION == "launchers":
    from emulation.launchers import load

    load()


@pytest.fixture(scope="session")
def emulators(request: pytest.FixtureRequest) -> Iterator[Callable[[str, str], Emulator]]:
    """Emulator(program, kind) of this checkout's kernels, compiled when it is first asked for and kept running."""
    folder = request.config.cache.mkdir("emulated-kernels")
    running: list[Emulator] = []

    @cache
    def start(program: str, kind: str) -> Emulator:
        running.append(Emulator(program, kind, folder))
        return running[-1]

    yield start
    for emulator in running:
        emulator.close()


@pytest.fixture(params=GPUS)
def gpu(request: pytest.FixtureRequest, emulators: Callable[[str, str], Emulator]) -> Iterator[str]:
    """A device that computes with the GPU kernels. Tensors lie in the CPU's memory where there is no real one."""
    if request.param == "cuda":
        yield "cuda"
        return
    if request.param == "launchers":
        yield "cpu"
        return
    if request.param == "interpreted":
        from interpreted.interpreted_ops import interpreted

        with interpreted():
            yield "cpu"
        return
    from emulation.emulated_ops import emulated

    with emulated(lambda program: emulators(program, request.param.removeprefix("emulated-"))):
        yield "cpu"


@pytest.fixture(params=["cpu", *GPUS])
def device(request: pytest.FixtureRequest, emulators: Callable[[str, str], Emulator]) -> Iterator[str]:
    """Every device for which an op with a CUDA kernel is tested."""
    if request.param == "cpu":
        yield "cpu"
    else:
        yield from gpu.__wrapped__(request, emulators)


@pytest.fixture(params=["cpu", *(GPUS if SESSION == "interpreted" else ["cuda"] if torch.cuda.is_available() else [])])
def triton_device(request: pytest.FixtureRequest, emulators: Callable[[str, str], Emulator]) -> Iterator[str]:
    """Every device for which an op with a Triton kernel is tested."""
    yield from device.__wrapped__(request, emulators)


def absent(what: str, command: str) -> NoReturn:
    """Skips the test and names the command that adds what it needs; under CI nothing is skipped in silence."""
    reason = f"needs {what}: {command}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by Selenium: a `selenium.webdriver.Chrome` that keeps the console's messages."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        absent("a browser", "apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as opened:
        yield opened


@pytest.fixture(scope="session")
def toolkit() -> _toolkit.Toolkit:
    """A CUDA toolkit, for tests that compile kernels; a GPU is not needed."""
    try:
        return _toolkit.find()
    except _toolkit.ToolkitError as error:
        absent(f"a CUDA toolkit ({error})", "pip install 'artsy_ext[cuda]'")


@pytest.fixture(scope="session")
def clang_tidy() -> str:
    beside = Path(sys.executable).with_name("clang-tidy")
    found = str(beside) if beside.exists() else shutil.which("clang-tidy")
    if found is None:
        absent("clang-tidy", "pip install 'artsy_ext[dev]'")
    return found


@pytest.fixture(scope="session")
def cuda_library() -> Path:
    """The library with the CUDA kernels, for tests that load it; a GPU is not needed."""
    path = _library.cuda_library_path()
    if torch.version.cuda is None:
        pytest.skip("needs a torch that is built with CUDA")
    if path is None:
        absent("the CUDA ops", "ARTSY_CUDA=1 pip install --no-build-isolation -e .")
    if str(path) not in torch.ops.loaded_libraries:
        pytest.skip("needs a torch with the version of CUDA that the library is built with")
    return path
