"""Shows what `artsy bench` found: tables, CSV and pictures from the content of results.json."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

from artsy_ext.learner.results import to_json

Results = Mapping[str, Any]
FILES = ("results.json", "results.csv", "table.md", "ratios.png", "roofline.png", "scaling.png")
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"
_DPI = 150


def write(results: Results, folder: Path) -> None:
    """Writes all of FILES into an existing folder; scaling.png only where a size or rate varies."""
    (folder / "results.json").write_text(to_json(results) + "\n")
    (folder / "results.csv").write_text(to_csv(results))
    (folder / "table.md").write_text(markdown(results))
    pictures(results, folder)


def heading(results: Results) -> str:
    """One line: where, on what, with what."""
    device, versions, commit = results["device"], results["versions"], results["commit"]
    return (
        f"{device['name']} ({device['isa']}), threads: {results['threads']}, torch {versions['torch']}, "
        f"commit {commit[:12] + ' with changes' * commit.endswith('+changes') if commit else 'unknown'}, "
        f"{results['created'][:10]}: `{results['command']}`"
    )


def table(results: Results, *, colour: bool = False) -> str:
    """For a terminal: a line per case and peer, as wide as it has to be."""
    rows = [["op", "case", "dtype", "pass", "µs [20 %, 80 %]", "roofline", "memory", "ours / peer [20 %, 80 %]", ""]]
    red = []
    for op, gate in results["gates"].items():
        if gate["failed"]:
            red.append(len(rows))
            rows.append([op, "", "", "", "RED", "", "", f"{len(gate['failed'])} tests fail: {gate['failed'][0]}", ""])
    for entry in results["cases"]:
        start = [entry["op"], entry["case"], entry["dtype"], entry["pass"]]
        if entry["red"]:
            red.append(len(rows))
            rows.append([*start, "RED", "", "", entry["red"], ""])
            continue
        ours = entry["ours"]
        start += [
            _spread(ours["seconds"], 1e6, 1),
            f"{entry['floor']['fraction']:.0%}",
            _memory(ours["peak_bytes"]),
        ]
        for ratio, name in _ratios(entry):
            rows.append([*start, ratio, name])
            start = [""] * len(start)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if colour:
        lines = [f"{_RED}{line}{_PLAIN}" if number in red else line for number, line in enumerate(lines)]
    return "\n".join(lines)


def markdown(results: Results) -> str:
    """The same as a table of Markdown, and the machine."""
    lines = [
        heading(results),
        "",
        "| op | case | pass | µs | ours / peer [20 %, 80 %] | of the roofline | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for op, gate in results["gates"].items():
        if gate["failed"]:
            lines.append(f"| `{op}` | | | **red** | {len(gate['failed'])} tests fail | | |")
    for entry in results["cases"]:
        start = f"| `{entry['op']}` | {entry['case']} {entry['dtype']} | {entry['pass']} |"
        if entry["red"]:
            lines.append(f"{start} **red** | {entry['red'].replace('|', '/')} | | |")
            continue
        ratios = "<br>".join(f"{ratio} {name}" for ratio, name in _ratios(entry))
        lines.append(
            f"{start} {entry['ours']['seconds']['median'] * 1e6:.1f} | {ratios} | {entry['floor']['fraction']:.0%} "
            f"| {_memory(entry['ours']['peak_bytes'])} |"
        )
    return "\n".join(lines) + "\n"


def _ratios(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, peer in entry["peers"].items():
        if "ratio" in peer:
            yield _spread(peer["ratio"], 1, 2), name
    for name, limit in entry["limits"].items():
        yield _spread(limit["ratio"], 1, 2), f"{name} (limit)"
    for name, peer in entry["peers"].items():
        if "red" in peer:
            yield "RED", f"{name}: {peer['red']}"


def _spread(spread: Mapping[str, float], scale: float, digits: int) -> str:
    low, middle, high = (f"{spread[k] * scale:.{digits}f}" for k in ("low", "median", "high"))
    return f"{middle} [{low}, {high}]"


def _memory(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:.1f} MB"


def to_csv(results: Results) -> str:
    """A row per case and candidate."""
    text = io.StringIO()
    spreads = [f"{what}_{k}" for what in ("seconds", "ratio") for k in ("median", "low", "high")]
    fields = [
        "op", "case", "dtype", "pass", "candidate", "kind", *spreads, "wall_seconds", "wall_ratio", "peak_bytes",
        "floor_seconds", "red", "device", "isa", "threads", "torch", "commit", "created",
    ]  # fmt: skip
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    where = {
        "device": results["device"]["name"], "isa": results["device"]["isa"], "threads": results["threads"],
        "torch": results["versions"]["torch"], "commit": results["commit"], "created": results["created"],
    }  # fmt: skip
    for op, gate in results["gates"].items():
        if gate["failed"]:
            writer.writerow({"op": op, "red": "; ".join(gate["failed"]), **where})
    for entry in results["cases"]:
        start = {**{key: entry[key] for key in ("op", "case", "dtype", "pass")}, **where}
        if entry["red"]:
            writer.writerow({**start, "candidate": "ours", "kind": "ours", "red": entry["red"]})
            continue
        found = [("ours", "ours", entry["ours"])]
        found += [(name, kind[:-1], peer) for kind in ("peers", "limits") for name, peer in entry[kind].items()]
        for name, kind, one in found:
            row = {**start, "candidate": name, "kind": kind}
            for what in ("seconds", "ratio"):
                row |= {f"{what}_{k}": v for k, v in one.get(what, {}).items()}
            row |= {key: one.get(key) for key in ("wall_seconds", "wall_ratio", "peak_bytes", "red")}
            writer.writerow(row | ({"floor_seconds": entry["floor"]["seconds"]} if kind == "ours" else {}))
    return text.getvalue()


def pictures(results: Results, folder: Path) -> None:
    from matplotlib.figure import Figure

    measured = [entry for entry in results["cases"] if entry["ours"]]
    if not measured:
        return
    _ratio_bars(Figure, measured, results, folder / "ratios.png")
    _roofline(Figure, measured, results, folder / "roofline.png")
    _scaling(Figure, measured, results, folder / "scaling.png")


def _save(figure: Any, results: Results, path: Path) -> None:
    figure.suptitle("\n".join(wrap(heading(results).replace("`", ""), 110)), fontsize=7)
    figure.savefig(path, dpi=_DPI)


def _ratio_bars(figure_class: Any, measured: list[Any], results: Results, path: Path) -> None:
    bars = [
        (f"{e['op']} {e['case']} {e['dtype']} {e['pass']}: {name}", peer["ratio"])
        for e in measured
        for name, peer in e["peers"].items()
        if "ratio" in peer
    ]
    figure = figure_class(figsize=(10, 1.2 + 0.2 * len(bars)), layout="constrained")
    axes = figure.subplots()
    middles = [ratio["median"] for _, ratio in bars]
    errors = [[abs(r["median"] - r[side]) for _, r in bars] for side in ("low", "high")]
    colours = ["#0072B2" if middle <= 1 else "#D55E00" for middle in middles]
    axes.barh(range(len(bars)), middles, xerr=errors, color=colours, ecolor="black", error_kw={"linewidth": 0.8})
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=6)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("CPU time of ours / of the peer: median, 20 % and 80 % quantiles; left of 1 ours is faster")
    _save(figure, results, path)


def _roofline(figure_class: Any, measured: list[Any], results: Results, path: Path) -> None:
    """Per case how much arithmetic per byte, and how near its floor."""
    figure = figure_class(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    by_op = defaultdict(list)
    for entry in measured:
        by_op[entry["op"]].append(entry)
    for number, (op, entries) in enumerate(by_op.items()):
        x = [max(e["floor"]["operations"], 1) / e["floor"]["bytes"] for e in entries]
        y = [e["floor"]["fraction"] for e in entries]
        axes.scatter(x, y, label=op, marker="osD^vP*Xhp<>"[number % 12], s=25)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte")
    axes.set_ylabel("fraction of the roofline of this machine")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, results, path)


def _scaling(figure_class: Any, measured: list[Any], results: Results, path: Path) -> None:
    """Time over S and over the rate of spikes, all else equal."""
    lines = []
    for axis in ("S", "rate"):
        groups = defaultdict(list)
        for entry in measured:
            if axis in entry["sizes"]:
                others = tuple((k, v) for k, v in entry["sizes"].items() if k not in (axis, "shape"))
                groups[entry["op"], entry["dtype"], entry["pass"], others].append(entry)
        lines += [(axis, key, group) for key, group in groups.items() if len({e["sizes"][axis] for e in group}) > 1]
    if not lines:
        return
    figure = figure_class(figsize=(12, 4.5), layout="constrained")
    panels = dict(zip(("S", "rate"), figure.subplots(1, 2), strict=True))
    for axis, (op, dtype, wanted, others), group in lines:
        group.sort(key=lambda entry: entry["sizes"][axis])
        label = " ".join([op, *(str(v) if isinstance(v, str) else f"{k}{v:g}" for k, v in others), dtype, wanted])
        x, y = ([e["sizes"][axis] for e in group], [e["ours"]["seconds"]["median"] * 1e3 for e in group])
        panels[axis].plot(x, y, marker="o", markersize=3, label=label, linewidth=1)
    for axis, panel in panels.items():
        panel.set_xlabel({"S": "S, sub-networks", "rate": "rate of spikes"}[axis])
        panel.set_ylabel("ms of CPU time")
        if panel.lines:
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.legend(fontsize=4)
    _save(figure, results, path)
