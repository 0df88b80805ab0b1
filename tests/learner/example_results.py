"""Made-up results of an experiment, for what shows results."""

from typing import Any

from artsy_ext.learner.results import aggregate, build_results


def measured(tasks: int, accuracy: float, synapses: bool, silent: bool) -> dict[str, Any]:
    """What one method measured with one seed: every accuracy of the same value, every fifth route wrong."""
    return {
        "average_accuracy": accuracy,
        "last_accuracy": accuracy,
        "accuracy_matrix": [[accuracy if j <= i else None for j in range(tasks)] for i in range(tasks)],
        "incremental_accuracy": [accuracy] * tasks,
        "forgetting": 1.25,
        "backward_transfer": -1.25,
        "synapses": {
            "recall": 0.8,
            "precision": 0.9,
            "mean_functional": 1.5,
            "silent_fraction": 0.3 if silent else None,
            "routing_matrix": [[0.8 if s == t else 0.2 / tasks for s in range(tasks)] for t in range(tasks)],
        }
        if synapses
        else None,
        "parameters": {"total": 12345.0, "per_task": 2469.0, "statistics_bytes": 1000.0},
        "seconds": {"training": 1.5, "inference": 0.5},
        "images_per_second": {"inference": 1080.0},
    }


def example(
    tasks: int = 5, seeds: int = 1, methods: tuple[str, ...] = ("finetune", "ease", "artsy", "joint", "unheard-of")
) -> dict[str, Any]:
    return build_results(
        "digits",
        range(seeds),
        {"config": {}},
        {
            name: {
                "summary": f"what {name} is",
                **aggregate(
                    [
                        measured(tasks, 20.0 * place + seed, name in ("ease", "artsy"), name == "artsy")
                        for seed in range(seeds)
                    ]
                ),
            }
            for place, name in enumerate(methods)
        },
    )
