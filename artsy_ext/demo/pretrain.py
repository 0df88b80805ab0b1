"""Makes the demo backbone's weight file.

    python -m artsy_ext.demo.pretrain [--seed 0] [--steps 700] [--output PATH]

The backbone learns to tell apart the letters A-Z and a-z, drawn from matplotlib's fonts and then distorted.
It never sees a digit, so the demo's streams are new to it. Longer pre-training makes those streams too easy
to tell methods apart; CARD.md has the numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from artsy_ext.demo.backbone import WEIGHT_FILE, FeatureStatistics, create_backbone, pack_backbone

LETTERS = string.ascii_letters

# By name, so that the weights don't depend on what else a matplotlib release brings. Left out: symbols,
# calligraphic capitals (cmsy10), and LastResortHE, which maps every letter to a box.
FONTS = tuple(
    f"{font}.ttf"
    for font in (
        *(f"DejaVuSans{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
        *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
        *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-BoldItalic", "-Italic")),
        *(f"STIXGeneral{style}" for style in ("", "Bol", "BolIta", "Italic")),
        *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
    )
)

IMAGE_SIZE = 28
GLYPH_SIZE = 20
BATCH_SIZE = 128
LEARNING_RATE = 2e-3
STATISTICS_BATCHES = 64


class Glyphs(NamedTuple):
    """Undistorted characters: images [n, 1, 28, 28] float32 in [0, 1], and labels [n] int64."""

    images: torch.Tensor
    labels: torch.Tensor


def draw_glyphs(fonts: Sequence[str] = FONTS, characters: str = LETTERS) -> Glyphs:
    """Every character in every font, its longer side 20 pixels, in the middle of a 28x28 image.

    A character that a font lacks is left out, as the font would draw a box.

    Args:
        fonts: file names of fonts that come with matplotlib.
        characters: the label of a character is its index here.

    Raises:
        OSError: if matplotlib has no such font.
    """
    images, labels = [], []
    for name in fonts:
        path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name)
        present = FT2Font(path).get_charmap()
        font = ImageFont.truetype(path, size=64, layout_engine=ImageFont.Layout.BASIC)
        for label, character in enumerate(characters):
            if ord(character) in present:
                images.append(_draw(character, font))
                labels.append(label)
    stacked = torch.from_numpy(np.stack(images)).float().unsqueeze(1) / 255
    return Glyphs(stacked, torch.tensor(labels))


def _draw(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    sheet = Image.new("L", (160, 160))
    ImageDraw.Draw(sheet).text((40, 30), character, fill=255, font=font)
    glyph = sheet.crop(sheet.getbbox())
    scale = GLYPH_SIZE / max(glyph.size)
    width, height = (max(2, round(side * scale)) for side in glyph.size)
    image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    image.paste(
        glyph.resize((width, height), Image.Resampling.BILINEAR),
        ((IMAGE_SIZE - width) // 2, (IMAGE_SIZE - height) // 2),
    )
    return np.asarray(image)


def sample_batch(glyphs: Glyphs, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random glyphs, distorted and normalised: images [size, 1, 28, 28] float32 and labels [size] int64."""
    chosen = torch.randint(len(glyphs.labels), (size,), generator=generator)
    images = _random_affine(glyphs.images[chosen], generator)
    images = _random_stroke(images, generator)
    images = _random_resolution(images, generator)
    return (images - 0.3) / 0.3, glyphs.labels[chosen]


def _random_affine(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    def within(bound: float) -> torch.Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * bound

    angle, scale, shear, aspect = within(0.35), 1 + within(0.2), within(0.3), 1 + within(0.2)
    across = torch.stack([angle.cos() * scale * aspect, shear - angle.sin() * scale, within(0.12)], 1)
    down = torch.stack([angle.sin() * scale, angle.cos() * scale / aspect, within(0.12)], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _random_stroke(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Thicker (40 %), thinner (15 %) or as it is."""
    thicker = F.max_pool2d(images, 3, stride=1, padding=1)
    thinner = F.pad(-F.max_pool2d(-images, 2, stride=1), (0, 1, 0, 1))
    u = torch.rand(len(images), 1, 1, 1, generator=generator)
    return torch.where(u < 0.4, thicker, torch.where(u < 0.55, thinner, images))


def _random_resolution(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Through 11x11 pixels and back (50 %), blurred (20 %) or as it is; brighter for what averaging took."""
    small = F.interpolate(images, size=(11, 11), mode="area")
    coarse = F.interpolate(small, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1)
    u = torch.rand(len(images), 1, 1, 1, generator=generator)
    return torch.where(u < 0.5, 1.2 * coarse, torch.where(u < 0.7, 1.3 * blurred, images)).clamp(max=1)


def pretrain(
    steps: int = 700, seed: int = 0, report: Callable[[int, float], None] | None = None
) -> tuple[VisionTransformer, FeatureStatistics, float]:
    """Train a backbone on distorted letters and measure its features.

    Args:
        steps: batches of 128 to train on; at least 1.
        seed: decides weights and samples; same seed, same number of threads, same machine: same bits.
        report: called after each step with the number of steps done and the loss.

    Returns:
        (backbone, statistics, accuracy): the backbone in eval mode, its float32 weights rounded to float16 as
        they will be stored; the statistics, and the accuracy in [0, 1], are over fresh samples.

    Raises:
        ValueError: if `steps` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"pretrain: steps must be at least 1, got {steps}")
    glyphs = draw_glyphs()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = create_backbone()
        head = nn.Linear(backbone.num_features, len(LETTERS))

    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.05)
    # OneCycleLR divides by its warm-up steps less one: a run too short for that is the start of a longer one.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=max(steps, 20), pct_start=0.1
    )
    backbone.train()
    for step in range(steps):
        images, labels = sample_batch(glyphs, BATCH_SIZE, generator)
        loss = F.cross_entropy(head(backbone(images)), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if report is not None:
            report(step + 1, loss.item())

    # What follows describes the weights that will be loaded, not the more precise ones that were trained.
    backbone.half().float().requires_grad_(False).eval()
    samples = [sample_batch(glyphs, BATCH_SIZE, generator) for _ in range(STATISTICS_BATCHES)]
    features = torch.cat([backbone(images) for images, _ in samples])
    labels = torch.cat([labels for _, labels in samples])
    with torch.no_grad():
        accuracy = (head(features).argmax(1) == labels).float().mean().item()
    return backbone, feature_statistics(features, labels), accuracy


def feature_statistics(features: torch.Tensor, labels: torch.Tensor) -> FeatureStatistics:
    """Mean and pooled within-class covariance of features [n, D] float32 with labels [n] int64."""
    exact = features.double()
    classes, members = torch.unique(labels, return_inverse=True)
    sums = torch.zeros(len(classes), features.shape[1], dtype=torch.float64).index_add_(0, members, exact)
    residuals = exact - (sums / members.bincount().unsqueeze(1))[members]
    covariance = residuals.T @ residuals / (len(features) - len(classes))
    return FeatureStatistics(exact.mean(0).float(), ((covariance + covariance.T) / 2).float())


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[int, float], None]]:
    """A progress bar on a terminal, a line now and then elsewhere."""
    if not sys.stdout.isatty():

        def print_line(step: int, loss: float) -> None:
            if step % 100 == 0 or step == steps:
                print(f"step {step}/{steps}  loss {loss:.3f}", flush=True)

        yield print_line
        return

    from rich.progress import Progress, TextColumn

    with Progress(*Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.3f}")) as progress:
        bar = progress.add_task("pre-training", total=steps, loss=float("nan"))

        def update_bar(step: int, loss: float) -> None:
            progress.update(bar, completed=step, loss=loss)

        yield update_bar


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: pre-train, write the weight file, print its SHA-256 and the accuracy."""
    parser = argparse.ArgumentParser(
        prog="python -m artsy_ext.demo.pretrain",
        description="Make the demo backbone's weight file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="decides weights and samples")
    parser.add_argument("--steps", type=int, default=700, help="training steps, at least 1")
    parser.add_argument("--output", type=Path, default=Path(WEIGHT_FILE), help="file to write")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"argument --steps: must be at least 1, got {options.steps}")
    if not options.output.absolute().parent.is_dir():
        parser.error(f"argument --output: there is no folder {options.output.absolute().parent}")

    with _progress(options.steps) as report:
        backbone, statistics, accuracy = pretrain(options.steps, options.seed, report)
    content = pack_backbone(backbone, statistics)

    # Renamed when complete, so that an interrupted run never leaves half a file under the final name.
    partial = options.output.with_name(f"{options.output.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, options.output)
    print(f"{options.output}: {len(content)} bytes")
    print(f"SHA-256 {hashlib.sha256(content).hexdigest()}")
    print(f"accuracy on fresh samples {accuracy:.4f}")


if __name__ == "__main__":
    main()
