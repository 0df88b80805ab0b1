"""First contact with a GPU in one command, `make gpu-check`: builds, tests, sanitizes, measures; needs no network.

Writes one folder, results/gpu-check-<UTC>: summary.md, summary.json, and a log per step. A step that fails does not
stop the others; a step that cannot run here is named with the reason. Exits with 1 where a step failed.
`--device emulated` takes the same steps without a GPU: the launchers run, their kernels are emulated.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
OPS = ("plan_routes", "combine_routes")
SHORT = "table or promises or overflow"


class Step(NamedTuple):
    name: str
    command: list[str]
    missing: str | None = None
    """Why it cannot run here; None where it can."""
    environment: dict[str, str] = {}  # noqa: RUF012 - a default that nobody changes


class Result(NamedTuple):
    step: str
    outcome: str
    """passed, failed, skipped"""
    seconds: float
    detail: str


def steps(device: str, select: str | None) -> Iterator[Step]:
    python = sys.executable
    parallel = ["-n", str(min(8, os.cpu_count() or 1))] if _has("xdist") and not select else []
    chosen = ["-k", select] if select else []
    pytest = [python, "-m", "pytest", "-q"]
    no_pytest = None if _has("pytest") else "needs pytest"
    on_device = {"ARTSY_TEST_DEVICE": "launchers"} if device == "emulated" else {}
    mark = ["-m", "emulated"] if device == "emulated" else []
    op_tests = [f"tests/ops/test_{op}.py" for op in OPS]

    yield Step("build", [python, "setup.py", "-q", "egg_info", "build_ext", "--inplace"])
    yield Step("info", [python, "-m", "artsy_ext.info"])
    yield Step("kernels", [*pytest, *parallel, *mark, *chosen, *op_tests], no_pytest, on_device)
    yield Step("ops", [*pytest, *parallel, *chosen, "tests/ops"], no_pytest or _needs("hypothesis"))
    sanitizer = _sanitizer()
    for tool in SANITIZERS:
        short = [*pytest, *mark, "-k", select or (f"({SHORT}) and cuda" if device == "cuda" else SHORT), *op_tests]
        yield Step(
            f"sanitizer-{tool}",
            [sanitizer or "compute-sanitizer", f"--tool={tool}", "--error-exitcode=86", *short],
            no_pytest or (None if sanitizer else "needs compute-sanitizer, which comes with a full CUDA toolkit"),
            # An allocator that hands out parts of what it holds would hide an access beyond a tensor's end.
            {**on_device, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
    bench = [
        str(path.relative_to(ROOT)) for path in sorted((ROOT / "bench/ops").glob("*.py")) if path.stem != "conftest"
    ]
    untimed = ["--benchmark-disable"] if device == "emulated" else []
    yield Step("benchmarks", [*pytest, *untimed, *chosen, *bench], no_pytest or _needs("pytest_benchmark"))
    yield Step("static", [*pytest, *parallel, *chosen, "tests/static"], no_pytest)
    yield Step("interpreted", [*pytest, *chosen, "tests/interpreted"], no_pytest or _needs("triton"))
    others = ["tests/build", "tests/nn", "tests/learner", "tests/cli", "tests/emulation"]
    learner = no_pytest or _needs("timm", "torchvision", "safetensors", "sklearn", "click", "rich", "jsonschema")
    yield Step("others", [*pytest, *parallel, *chosen, *others], learner)


def take(step: Step, folder: Path) -> Result:
    if step.missing is not None:
        return Result(step.name, "skipped", 0.0, step.missing)
    environment = os.environ | {"PYTHONPATH": _path(), "PYTHONUNBUFFERED": "1"} | step.environment
    start = time.monotonic()
    with (folder / f"{step.name}.log").open("w") as log:
        log.write(f"$ {' '.join(step.command)}\n")
        log.flush()
        code = subprocess.run(step.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
    lines = (folder / f"{step.name}.log").read_text().strip().splitlines()
    if code == 5 and "pytest" in step.command:
        return Result(step.name, "skipped", time.monotonic() - start, "no test selected")
    return Result(step.name, "failed" if code else "passed", time.monotonic() - start, lines[-1])


def write(results: list[Result], device: str, folder: Path) -> None:
    lines = [
        f"# gpu-check on {device}",
        "",
        "| step | outcome | seconds | last line, or what is missing |",
        "|---|---|---|---|",
    ]
    lines += [f"| {r.step} | {r.outcome} | {r.seconds:.0f} | {r.detail.replace('|', '/')} |" for r in results]
    (folder / "summary.md").write_text("\n".join(lines) + "\n")
    (folder / "summary.json").write_text(
        json.dumps({"device": device, "steps": [r._asdict() for r in results]}, indent=2)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds, tests, sanitizes and measures on a GPU.")
    parser.add_argument("--device", choices=["cuda", "emulated"], default="cuda")
    parser.add_argument("--steps", help="comma-separated; all if absent")
    parser.add_argument("--select", help="pytest's -k for every step that runs tests")
    parser.add_argument("--output", type=Path, help="the result folder")
    arguments = parser.parse_args()
    os.environ.setdefault("ARTSY_CUDA", "1")
    if arguments.device == "cuda" and not _sees_a_gpu():
        print(
            "gpu-check: error: torch sees no GPU here; --device emulated takes the steps without one", file=sys.stderr
        )
        return 2

    stamp = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H%M%S")
    folder = arguments.output or ROOT / "results" / f"gpu-check-{stamp}"
    folder.mkdir(parents=True)
    wanted = list(steps(arguments.device, arguments.select))
    if arguments.steps:
        names = arguments.steps.split(",")
        if unknown := set(names) - {step.name for step in wanted}:
            parser.error(
                f"--steps must be of {', '.join(step.name for step in wanted)}, got {', '.join(sorted(unknown))}"
            )
        wanted = [step for step in wanted if step.name in names]
    results: list[Result] = []
    for step in wanted:
        results.append(take(step, folder))
        print(
            f"{step.name:<20}{results[-1].outcome:<10}{results[-1].seconds:>5.0f} s  {results[-1].detail}", flush=True
        )
        write(results, arguments.device, folder)  # after each step: what was found stays found
    print(folder)
    return int(any(result.outcome == "failed" for result in results))


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _needs(*modules: str) -> str | None:
    missing = [module for module in modules if not _has(module)]
    return f"needs {', '.join(missing)}" if missing else None


def _sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")


def _path() -> str:
    # This tree, built in place, before any installed package.
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _sees_a_gpu() -> bool:
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code]).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
