"""`artsy predict` beside the loop that evaluates a run, on 1,000 image files and one thread.

    python bench/predict.py

Both read and decode the files. The evaluation shares E0's features between methods and the files are read twice for
that; a prediction takes classes, probabilities and functional sub-networks from one look at each image.
"""

import tempfile
from pathlib import Path

import torch
from interleave import compare
from PIL import Image

from artsy_ext.data import load_source
from artsy_ext.data.folder import ImageFiles
from artsy_ext.learner import Features, FinishedRun, LearnerConfig, Run, RunConfig
from artsy_ext.learner.experiment import evaluate
from artsy_ext.learner.predict import ask
from artsy_ext.learner.progress import Progress

IMAGES = 1000


def draw(folder: Path) -> None:
    """The first digits as PNG files, in a folder for each class."""
    digits = load_source("digits").train
    for index, label in enumerate(digits.labels[:IMAGES].tolist()):
        pixels = (255 * digits.images[index][0]).round().to(torch.uint8).numpy()
        path = folder / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def main() -> None:
    torch.set_num_threads(1)
    quiet = Progress.silent()
    with tempfile.TemporaryDirectory() as name:
        images, run = Path(name, "images"), Path(name, "run")
        draw(images)
        learner = LearnerConfig(epochs=1, stdp_epochs=1)
        Run(RunConfig(methods=("artsy",), threads=1, learner=learner), run).train()
        finished = FinishedRun(run, data=f"folder:{images}")
        classifier, files = finished.classifier, ImageFiles([images])
        transform = finished.stream.tasks[0].test.transform
        assert transform is not None

        answers = ask(classifier, files, transform, quiet)
        right = sum(Path(answer.image).parent.name == answer.label for answer in answers)
        accuracy = finished.evaluate()["last_accuracy"]
        assert abs(100 * right / IMAGES - accuracy) < 1e-9, (right, accuracy)

        found = compare(
            lambda: ask(classifier, files, transform, quiet),
            {"evaluation": lambda: evaluate(classifier, finished.stream, Features(classifier.vit), quiet)},
            rounds=7,
        )
    ratio = found.ratios["evaluation"]
    print(f"{IMAGES / found.ours.wall:.0f} images/s")
    print(
        f"{1 / ratio.cpu:.2f} times as fast as the evaluation (CPU time; {1 / ratio.high:.2f} to {1 / ratio.low:.2f})"
    )


if __name__ == "__main__":
    main()
