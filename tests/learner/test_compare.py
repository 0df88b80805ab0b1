"""Two runs side by side: paired by seed, and what was asked for differently."""

import copy
import io
from typing import Any

import pytest
from example_results import example, measured
from rich.console import Console

from artsy_ext.learner.compare import compare, print_comparison
from artsy_ext.learner.results import aggregate


def with_accuracies(seeds: list[int], accuracies: list[float], **config: Any) -> dict[str, Any]:
    results = example(methods=("finetune", "artsy"), seeds=len(seeds))
    results["seeds"] = seeds
    results["arguments"]["config"] = config
    trees = [measured(5, accuracy, synapses=True, silent=True) for accuracy in accuracies]
    results["methods"]["artsy"] = {"summary": "", **aggregate(trees)}
    return results


def printed(comparison: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_comparison(comparison, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_seeds_are_paired_by_their_number() -> None:
    first = with_accuracies([0, 1, 2], [90.0, 80.0, 10.0], rank=16, epochs=4)
    second = with_accuracies([1, 0], [83.0, 91.0], rank=8, epochs=4)
    found = compare(first, second)
    assert found["same"] is False
    assert found["seeds"] == [0, 1]
    assert found["differences"] == {"rank": [16, 8], "seeds": [[0, 1, 2], [1, 0]]}
    assert found["methods"]["artsy"]["last_accuracy"] == {
        "first": 85.0,
        "second": 87.0,
        "difference": {"mean": 2.0, "std": 1.0, "values": [1.0, 3.0]},
    }
    assert found["methods"]["finetune"]["synapses.recall"] is None
    text = printed(found)
    assert "rank: 16 → 8\n" in text
    assert "85.0 → 87.0" in text
    assert "(+2.0 ± 1.0)" in text


def test_runs_that_are_the_same_but_for_their_times() -> None:
    first = example(seeds=2)
    second = copy.deepcopy(first)
    second["created"] = "another day"
    second["methods"]["artsy"]["seconds"]["training"]["values"] = [8.0, 9.0]
    found = compare(first, second)
    assert found["same"] is True
    assert printed(found) == "The numbers are the same, times aside.\n"
    second["methods"]["artsy"]["accuracy_matrix"]["values"][1][4][0] += 1e-9
    assert compare(first, second)["same"] is False


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({**example(), "seeds": [7]}, r"a seed in common, got \[0\] and \[7\]"),
        (example(methods=("lda",)), "a method in common, got finetune, .* and lda"),
    ],
)
def test_runs_with_nothing_in_common(second: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(example(), second)
