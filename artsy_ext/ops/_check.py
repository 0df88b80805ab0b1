"""Argument checks shared by all ops: one line that names the argument, what was expected and what came."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

REAL = (torch.float32, torch.float64)
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Check:
    """Checks the arguments of one op.

    Dimensions are named as in the docstrings ("S R D"); the first tensor that has a dimension fixes its size, every
    later one must agree. A wrong rank, size, dtype or device, or an unknown word, raises ValueError.
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.sizes: dict[str, Any] = {}

    def fail(self, message: str) -> NoReturn:
        raise ValueError(f"{self.op}: {message}")

    def tensor(
        self, name: str, value: Tensor, *shapes: str, dtypes: Sequence[torch.dtype] = (), like: Tensor | None = None
    ) -> None:
        """`shapes` are the accepted forms, "..." at the end of one takes the rest; `like` gives device and dtype."""
        names = next((s.split() for s in shapes if self._rank_fits(s.split(), value.dim())), None)
        if names is None:
            self.fail(f"{name} must be {_forms(shapes)}, got {list(value.shape)}")
        for axis, dimension in enumerate(names):
            if dimension == "...":
                break
            size = self.sizes.setdefault(dimension, value.shape[axis])
            if value.shape[axis] != size:
                self.fail(f"{name} must be {_forms(shapes)} with {dimension}={size}, got {list(value.shape)}")
        if dtypes and value.dtype not in dtypes:
            self.fail(f"{name} must be {' or '.join(_word(d) for d in dtypes)}, got {_word(value.dtype)}")
        if like is not None:
            if value.device != like.device:
                self.fail(f"{name} must be on {like.device} as the other arguments, got {value.device}")
            if not dtypes and value.dtype != like.dtype:
                self.fail(f"{name} must be {_word(like.dtype)} as the other arguments, got {_word(value.dtype)}")

    def size(self, name: str, value: int, dimension: str) -> None:
        size = self.sizes.setdefault(dimension, value)
        if value != size:
            self.fail(f"{name} must agree with {dimension}={size}, got {value}")

    def word(self, name: str, value: str, known: Sequence[str]) -> None:
        if value not in known:
            self.fail(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")

    def routes(self, routes: Sequence[Tensor], like: Tensor) -> None:
        """The six tensors of Routes: fixes P, B and S."""
        sample, subnetwork, offsets, order, sample_offsets, overflow = routes
        index = (torch.int64,)
        self.tensor("routes.sample", sample, "P", dtypes=index, like=like)
        self.tensor("routes.subnetwork", subnetwork, "P", dtypes=index, like=like)
        self.tensor("routes.order", order, "P", dtypes=index, like=like)
        self.tensor("routes.offsets", offsets, "S+1", dtypes=index, like=like)
        self.tensor("routes.sample_offsets", sample_offsets, "B+1", dtypes=index, like=like)
        self.tensor("routes.overflow", overflow, "", dtypes=(torch.bool,), like=like)
        self.size("routes.offsets", offsets.shape[0] - 1, "S")
        self.size("routes.sample_offsets", sample_offsets.shape[0] - 1, "B")

    @staticmethod
    def _rank_fits(names: list[str], rank: int) -> bool:
        return rank >= len(names) - 1 if names[-1:] == ["..."] else rank == len(names)


def _forms(shapes: Sequence[str]) -> str:
    return " or ".join("[" + ", ".join(s.split()) + "]" for s in shapes)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
