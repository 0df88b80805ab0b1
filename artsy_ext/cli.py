"""The `artsy` command: runs experiments of `artsy_ext.learner` and shows what is installed.

Whatever a user can get wrong ends in one line on stderr and exit code 2, before anything is computed or written.
Everything heavy is imported inside the commands, so that `artsy --help` answers at once, and `main` can say which
extra is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

__all__ = ["commands", "main"]

_BAD_INPUT = 2
_INTERRUPTED = 130  # 128 + SIGINT, as shells do


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: what follows `artsy`; by default the process's own.

    Returns:
        The exit code: 0, 2 for bad input, 130 when interrupted.
    """
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print("artsy: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "artsy_ext"):
            raise
        return _fail(f"{package} is not installed: pip install 'artsy_ext[learn]'")
    except OSError as error:
        return _fail(str(error))


def _run(arguments: list[str]) -> int:
    import click

    group = commands()
    try:
        # Not group.main(): it has its own way with interrupts and usage errors.
        with group.make_context("artsy", arguments) as context:
            group.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        return _fail(error.format_message())
    return 0


def _fail(message: str) -> int:
    print(f"artsy: error: {' '.join(message.split())}", file=sys.stderr)
    return _BAD_INPUT


def commands() -> click.Group:
    """The click group behind `main`."""
    import click

    class DemoCommand(click.Command):
        """Lists streams and methods under its options; only then are they imported."""

        def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
            from artsy_ext.data import STREAMS
            from artsy_ext.learner.methods import METHODS

            with formatter.section("Streams"):
                formatter.write_dl([(name, (build.__doc__ or "").split("\n")[0]) for name, build in STREAMS.items()])
            with formatter.section("Methods"):
                formatter.write_dl([(name, method.summary) for name, method in METHODS.items()])

    @click.group(invoke_without_command=True)
    @click.version_option(package_name="artsy_ext")
    @click.pass_context
    def artsy(context: click.Context) -> None:
        """Learn tasks one after another with artificial synapses (arXiv 2410.05899)."""
        if context.invoked_subcommand is None:
            click.echo(context.get_help())

    @artsy.command(cls=DemoCommand)
    @click.option("--stream", default="digits", show_default=True, help="Stream of tasks.")
    @click.option(
        "--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Run seeds 0 to N-1.", metavar="N"
    )
    @click.option("--methods", metavar="A,B,...", help="Methods to compare; all by default.")
    @click.option(
        "--output",
        type=click.Path(path_type=Path),
        default=Path("artsy-demo"),
        show_default=True,
        metavar="DIR",
        help="Folder to write to.",
    )
    @click.option("--overwrite", is_flag=True, help="Replace an earlier run in that folder.")
    @click.option("--no-consolidate", is_flag=True, help="Leave every synapse functional, none silent.")
    @click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="CPU threads; the demo's network is too small to gain much from more.",
    )
    @click.option("--quiet", is_flag=True, help="Show no progress bars.")
    def demo(
        stream: str,
        seeds: int,
        methods: str | None,
        output: Path,
        overwrite: bool,
        no_consolidate: bool,
        threads: int,
        quiet: bool,
    ) -> None:
        """Compare continual-learning methods on handwritten digits.

        Needs no download: backbone and data come with the packages.
        """
        _demo(stream, seeds, methods, output, overwrite, not no_consolidate, threads, quiet)

    @artsy.command()
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def info(as_json: bool) -> None:
        """Show versions, devices, and which optional packages are missing."""
        from artsy_ext.info import print_info

        print_info(as_json)

    return artsy


def _demo(
    stream: str,
    seeds: int,
    methods: str | None,
    output: Path,
    overwrite: bool,
    consolidate: bool,
    threads: int,
    quiet: bool,
) -> None:
    import click
    import torch
    from rich.console import Console

    from artsy_ext.demo import load_backbone
    from artsy_ext.learner.config import LearnerConfig
    from artsy_ext.learner.experiment import check_methods, check_stream, run_experiment
    from artsy_ext.learner.methods import METHODS
    from artsy_ext.learner.progress import Progress
    from artsy_ext.learner.report import check_output, print_table, write_run

    try:
        names = check_methods(METHODS if methods is None else (name.strip() for name in methods.split(",")))
        check_stream(stream)
        check_output(output, overwrite)
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error

    try:
        backbone, statistics = load_backbone()
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    torch.set_num_threads(threads)
    with Progress(quiet) as progress:
        result = run_experiment(
            stream,
            backbone,
            statistics,
            names,
            range(seeds),
            LearnerConfig(consolidate=consolidate),
            progress,
            command={
                "name": "demo",
                "stream": stream,
                "seeds": seeds,
                "methods": list(names),
                "consolidate": consolidate,
                "threads": threads,
            },
        )

    def write_checkpoint(folder: Path) -> None:
        if result.classifier is not None:
            result.classifier.save(folder / "checkpoint")

    write_run(output, result.results, write_checkpoint, overwrite=overwrite)
    # Where nobody looks at it through a window of fixed width, the table takes the width it needs.
    print_table(result.results, Console(width=None if sys.stdout.isatty() else 200))
    print(f"written to {output.resolve()}")


if __name__ == "__main__":
    sys.exit(main())
