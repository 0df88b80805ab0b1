"""The `artsy` command: runs experiments of `artsy_ext.learner` and shows what is installed.

Whatever a user can get wrong ends in one line on stderr and exit code 2, before anything is computed or written.
Everything heavy is imported inside the commands, so that `artsy --help` answers at once, and `main` can say which
extra is missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

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
    print(f"artsy: error: {' '.join(filter(None, map(str.strip, message.splitlines())))}", file=sys.stderr)
    return _BAD_INPUT


def commands() -> click.Group:
    """The click group behind `main`."""
    import click

    def output(default: Path) -> Callable[[Any], Any]:
        return click.option(
            "--output",
            type=click.Path(path_type=Path),
            default=default,
            show_default=True,
            metavar="DIR",
            help="Folder to write to.",
        )

    overwrite = click.option("--overwrite", is_flag=True, help="Replace an earlier run in that folder.")
    cache = click.option(
        "--cache-dir",
        type=click.Path(path_type=Path),
        default=_default_cache(),
        envvar="ARTSY_CACHE_DIR",
        show_default=True,
        show_envvar=True,
        metavar="DIR",
        help="Where E0's features are kept from run to run.",
    )
    quiet = click.option("--quiet", is_flag=True, help="Show no progress bars.")

    @click.group(invoke_without_command=True)
    @click.version_option(package_name="artsy_ext")
    @click.pass_context
    def artsy(context: click.Context) -> None:
        """Learn tasks one after another with artificial synapses (arXiv 2410.05899)."""
        if context.invoked_subcommand is None:
            click.echo(context.get_help())

    class SettingsCommand(click.Command):
        """Takes every setting of a run as an option; only when the command is used are the settings imported."""

        settings: Sequence[click.Parameter] = ()

        def get_params(self, context: click.Context) -> list[click.Parameter]:
            if not self.settings:
                settings = _setting_options(demo=self.name == "demo")
                # An ablation has rows instead of methods.
                self.settings = [s for s in settings if self.name != "ablate" or s.name != "methods"]
            return [*self.settings, *super().get_params(context)]

        def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
            from artsy_ext.data import SOURCES
            from artsy_ext.learner.methods import METHODS

            with formatter.section("Data sets"):
                formatter.write_dl([(name, source.summary) for name, source in SOURCES.items()])
            if self.name == "ablate":
                from artsy_ext.learner.ablation import ROWS

                with formatter.section("Parts and what is changed about them"):
                    formatter.write_dl([(row.part, row.label) for row in ROWS])
            else:
                with formatter.section("Methods"):
                    formatter.write_dl([(name, method.summary) for name, method in METHODS.items()])

    @artsy.command(cls=SettingsCommand)
    @output(Path("artsy-run"))
    @overwrite
    @cache
    @quiet
    def train(output: Path, overwrite: bool, cache_dir: Path, quiet: bool, **settings: Any) -> None:
        """Learn a data set task by task with one or several methods, and compare them.

        Every setting can also stand in a TOML file (--config); the run folder gets one with all of them.
        """
        _train(settings, output, overwrite, cache_dir, quiet)

    @artsy.command(cls=SettingsCommand)
    @output(Path("artsy-demo"))
    @overwrite
    @cache
    @quiet
    def demo(output: Path, overwrite: bool, cache_dir: Path, quiet: bool, **settings: Any) -> None:
        """Compare continual-learning methods on handwritten digits: train with the built-in data.

        Needs no download: backbone and data come with the packages.
        """
        _train(settings, output, overwrite, cache_dir, quiet)

    @artsy.command(cls=SettingsCommand)
    @click.option("--parts", metavar="A,B,...", help="Compare these parts alone.")
    @output(Path("artsy-ablation"))
    @overwrite
    @cache
    @quiet
    def ablate(parts: str | None, output: Path, overwrite: bool, cache_dir: Path, quiet: bool, **settings: Any) -> None:
        """Change artsy one thing at a time, and compare: what do its parts contribute?

        Writes ablation.json, ablation.csv and ablation.png. If it is stopped, the same command goes on where it was.
        """
        _ablate(settings, parts, output, overwrite, cache_dir, quiet)

    @artsy.command("eval")
    @click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
    @click.option("--data", help="Other data with the same class names; by default those of the run.")
    @click.option("--data-dir", help="Where data sets of torchvision are, if they have moved.")
    @click.option("--backbone", help="E0, if its weights have moved.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @cache
    @quiet
    def evaluate(folder: Path, as_json: bool, quiet: bool, **options: Any) -> None:
        """Ask the classifier in the run folder DIR about test images."""
        _evaluate(folder, as_json, quiet, options)

    @artsy.command()
    @click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
    @click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGES...")
    @click.option("--backbone", help="E0, if its weights have moved.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of CSV.")
    @quiet
    def predict(folder: Path, images: tuple[Path, ...], backbone: str | None, as_json: bool, quiet: bool) -> None:
        """Ask the classifier in a run folder about images: files, and folders of them.

        Prints for each its class, the probability of that class, and which sub-networks were functional, by the number
        of their task.
        """
        _predict(folder, images, backbone, as_json, quiet)

    @artsy.command()
    @click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
    @click.option(
        "--output",
        type=click.Path(path_type=Path),
        default=Path("artsy-report.html"),
        show_default=True,
        metavar="FILE",
        help="File to write.",
    )
    @click.option("--overwrite", is_flag=True, help="Replace that file.")
    def report(folders: tuple[Path, ...], output: Path, overwrite: bool) -> None:
        """Show one or several run folders on one HTML page, in a single file."""
        _report(folders, output, overwrite)

    @artsy.command()
    @click.argument("first", type=click.Path(path_type=Path), metavar="RUN")
    @click.argument("second", type=click.Path(path_type=Path), metavar="RUN")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def compare(first: Path, second: Path, as_json: bool) -> None:
        """Show what two run folders differ in: settings, versions, and the numbers seed by seed."""
        _compare(first, second, as_json)

    @artsy.command()
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def info(as_json: bool) -> None:
        """Show versions, devices, and which optional packages are missing."""
        from artsy_ext.info import print_info

        print_info(as_json)

    return artsy


def _default_cache() -> Path:
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "artsy_ext"


def _setting_options(demo: bool) -> list[click.Parameter]:
    """An option for every setting of a run, and --config for a file of them."""
    import click

    from artsy_ext.data import BUILT_IN
    from artsy_ext.learner.config import read_toml, settings

    def read(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
        if path is None:
            return
        try:
            values = read_toml(path)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        except OSError as error:
            raise click.UsageError(f"config: {path} can't be read: {error.strerror}") from error
        # What click takes for an option that is not given.
        lists = {name: ",".join(map(str, value)) or None for name, value in values.items() if isinstance(value, list)}
        context.default_map = {**values, **lists}

    def split(kind: Any) -> Callable[[click.Context, click.Parameter, str | None], list[Any] | None]:
        def callback(context: click.Context, parameter: click.Parameter, value: str | None) -> list[Any] | None:
            if value is None:
                return None
            try:
                return [kind(item.strip()) for item in value.split(",")]
            except ValueError:
                raise click.BadParameter(f"{value!r} is not a list of whole numbers") from None

        return callback

    options: list[click.Parameter] = [
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=read,
            metavar="FILE",
            help="TOML file with settings; options on the command line win.",
        )
    ]
    for name, setting in settings().items():
        names, more = [f"--{name.replace('_', '-')}", name], dict[str, Any]()
        kinds = [kind for kind in get_args(setting.type) or (setting.type,) if kind is not type(None)]
        if name == "data" and demo:
            names, more = ["--stream", name], {"type": click.Choice(BUILT_IN)}
        elif setting.type is bool:
            names[0] += f"/--no-{names[0][2:]}"
        elif get_origin(setting.type) is Literal:
            more["type"] = click.Choice(get_args(setting.type))
        elif get_origin(setting.type) is tuple:
            names = ["--method", *names] if name == "methods" else names
            kind = get_args(setting.type)[0]
            more = {"callback": split(kind), "metavar": "N,N,..." if kind is int else "A,B,..."}
        else:
            more["type"] = kinds[0]
        default = setting.default or None if get_origin(setting.type) is tuple else setting.default
        options.append(
            click.Option(names, default=default, show_default=default is not None, help=setting.help, **more)
        )
    return options


def _train(settings: dict[str, Any], output: Path, overwrite: bool, cache_dir: Path, quiet: bool) -> None:
    import click
    from rich.console import Console

    from artsy_ext.learner.config import RunConfig
    from artsy_ext.learner.progress import Progress
    from artsy_ext.learner.report import print_table
    from artsy_ext.learner.run import Run

    with Progress(quiet) as progress:
        try:
            config = RunConfig.from_mapping(settings)
            run = Run(config, output, overwrite=overwrite, cache_dir=cache_dir, progress=progress)
        except (ValueError, OSError) as error:
            raise click.UsageError(str(error)) from error
        results = run.train()
    print_table(results, Console(width=_width()))
    print(f"written to {output.resolve()}")


def _ablate(
    settings: dict[str, Any], parts: str | None, output: Path, overwrite: bool, cache_dir: Path, quiet: bool
) -> None:
    import click
    from rich.console import Console

    from artsy_ext.learner.ablation import Ablation
    from artsy_ext.learner.ablation_report import print_table
    from artsy_ext.learner.config import RunConfig
    from artsy_ext.learner.progress import Progress

    with Progress(quiet) as progress:
        try:
            ablation = Ablation(
                RunConfig.from_mapping(settings),
                output,
                parts=[] if parts is None else [part.strip() for part in parts.split(",")],
                overwrite=overwrite,
                cache_dir=cache_dir,
                progress=progress,
            )
        except (ValueError, OSError) as error:
            raise click.UsageError(str(error)) from error
        results = ablation.run()
    print_table(results, Console(width=_width()))
    print(f"written to {output.resolve()}")


def _evaluate(folder: Path, as_json: bool, quiet: bool, options: dict[str, Any]) -> None:
    import click
    from rich.console import Console

    from artsy_ext.learner.progress import Progress
    from artsy_ext.learner.report import print_evaluation
    from artsy_ext.learner.results import to_json
    from artsy_ext.learner.run import FinishedRun

    with Progress(quiet) as progress:
        try:
            run = FinishedRun(folder, progress=progress, **options)
        except (ValueError, OSError) as error:
            raise click.UsageError(str(error)) from error
        evaluation = run.evaluate()
    if as_json:
        print(to_json(evaluation))
    else:
        print_evaluation(evaluation, Console(width=_width()))


def _predict(folder: Path, images: Sequence[Path], backbone: str | None, as_json: bool, quiet: bool) -> None:
    import click

    from artsy_ext.learner.predict import predict, to_csv, to_list
    from artsy_ext.learner.progress import Progress
    from artsy_ext.learner.results import to_json

    with Progress(quiet) as progress:
        try:
            answers = predict(folder, images, backbone=backbone, progress=progress)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    print(to_json(to_list(answers)) if as_json else to_csv(answers), end="\n" if as_json else "")


def _report(folders: Sequence[Path], output: Path, overwrite: bool) -> None:
    import click

    from artsy_ext.learner._files import replacing_file
    from artsy_ext.learner.page import report_page
    from artsy_ext.learner.report import read_results

    if output.is_dir():
        raise click.UsageError(f"output: {output} is a folder, expected a file")
    if output.exists() and not overwrite:
        raise click.UsageError(f"output: {output} exists, and is replaced only with --overwrite")
    try:
        page = report_page({str(folder): read_results(folder) for folder in folders})
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with replacing_file(output) as beside:
        beside.write_text(page, encoding="utf-8")
    print(f"written to {output.resolve()}")


def _compare(first: Path, second: Path, as_json: bool) -> None:
    import click
    from rich.console import Console

    from artsy_ext.learner.compare import compare, print_comparison
    from artsy_ext.learner.report import read_results
    from artsy_ext.learner.results import to_json

    try:
        comparison = compare(read_results(first), read_results(second))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        print(to_json(comparison))
    else:
        print_comparison(comparison, Console(width=_width()))


def _width() -> int | None:
    # Where nobody looks at it through a window of fixed width, a table takes the width it needs.
    return None if sys.stdout.isatty() else 200


if __name__ == "__main__":
    sys.exit(main())
