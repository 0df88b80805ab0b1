"""E0's features of whole image sets: computed once, shared by all methods and seeds, and kept on disk.

E0 is frozen, so h0 of an image never changes. Methods ask for the features of the images they learn from, the
experiment for those of the images it asks about; neither runs E0 again for an image it has seen.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader

from artsy_ext.data import Images
from artsy_ext.info import versions
from artsy_ext.learner._files import replacing_file
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.training import images_per_batch
from artsy_ext.nn import RoutedViT

__all__ = ["Features"]

_FORMAT = 1
"""Grows by one when the same images, transform and weights would give other features."""


class Features:
    """h0 of the images of any `ImageSet`, each set passed through E0 once.

    Args:
        vit: E0.
        cache_dir: where features are kept, under a name made of everything they depend on: the images, their transform,
            E0's weights and structure, the machine and its threads, the versions of the packages. None keeps them in
            memory alone.
        progress: where bars are shown.
    """

    def __init__(self, vit: RoutedViT, cache_dir: Path | None = None, progress: Progress | None = None) -> None:
        self.vit, self.cache_dir, self.progress = vit, cache_dir, progress or Progress.silent()
        self._sets: dict[str, Tensor] = {}
        self._backbone = hashlib.sha256(f"{vit.fingerprint()}\n{vit.structure()}".encode()).hexdigest()
        self._seconds_per_image: float | None = None

    def h0(self, images: Images) -> Tensor:
        """[n, D] float32 on the CPU, in the order of `images`."""
        key = self._key(images)
        if key not in self._sets:
            self._sets[key] = self._of_set(images, key)
        return self._sets[key][images.indices]

    def seconds(self, images: Images) -> float:
        """How long E0 takes for as many images on this machine: the best of three on one batch of the first given.

        Features that were computed before cost nothing now; this is what a method would have spent on them.
        """
        if self._seconds_per_image is None:
            batch = next(iter(DataLoader(images, images_per_batch(self.vit), generator=torch.Generator())))[0]
            self._forward(batch)  # the first pass is slower
            self._seconds_per_image = min(self._timed(batch) for _ in range(3)) / len(batch)
        return self._seconds_per_image * len(images)

    def _timed(self, batch: Tensor) -> float:
        start = time.perf_counter()
        self._forward(batch)
        return time.perf_counter() - start

    def _of_set(self, images: Images, key: str) -> Tensor:
        path = None if self.cache_dir is None else self.cache_dir / "features" / f"{key}.safetensors"
        if " at 0x" in repr(images.transform):  # an address: of this process alone, or by chance of another transform
            path = None
        everything = Images(images.source, torch.arange(len(images.source)), transform=images.transform)
        if path is not None:
            try:
                found = safetensors.torch.load_file(path)["h0"]
                if found.shape == (len(everything), self.vit.dim) and found.dtype == torch.float32:
                    return found
            except (OSError, SafetensorError, KeyError):
                pass  # not there, or damaged: made anew
        h0 = self._compute(everything)
        if path is not None:
            try:
                with replacing_file(path) as beside:
                    safetensors.torch.save_file({"h0": h0}, beside)
            except (OSError, SafetensorError) as error:  # no reason to lose the run
                warnings.warn(f"cache_dir: features are not kept in {self.cache_dir}: {error}", stacklevel=2)
        return h0

    def _compute(self, images: Images) -> Tensor:
        h0 = torch.empty(len(images), self.vit.dim)
        # With a generator of its own the loader does not draw from PyTorch's random state.
        loader = DataLoader(images, images_per_batch(self.vit), generator=torch.Generator())
        done = 0
        for batch, _ in self.progress.track(loader, "features of E0"):
            h0[done : done + len(batch)] = self._forward(batch)
            done += len(batch)
        return h0

    @torch.no_grad()
    def _forward(self, batch: Tensor) -> Tensor:
        return self.vit.base_features(self.vit.embed(batch.to(self.vit.device))).cpu()

    def _key(self, images: Images) -> str:
        found = versions()
        facts = {
            "format": _FORMAT,
            "images": images.source.digest,
            "transform": repr(images.transform),
            "backbone": self._backbone,
            # Pillow and torchvision decode and resize.
            "versions": [found[name] for name in ("artsy_ext", "torch", "timm", "torchvision", "pillow")],
            # The last bits depend on these.
            "machine": [found["processor"], str(self.vit.device), torch.get_num_threads()],
            "batch": images_per_batch(self.vit),
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
