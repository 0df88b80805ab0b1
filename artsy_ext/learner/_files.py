"""Folders and files that are written beside and renamed, so that a failure leaves what was there."""

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


def foreign(path: Path, known: Collection[str]) -> list[str]:
    """Names of what the folder `path` holds besides `known`."""
    return sorted(entry.name for entry in path.iterdir() if entry.name not in known)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path` that takes its place at the end, unless something is raised.

    What `path` held is gone then; whether that may be is for the caller to find out before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as beside:
        new, old = Path(beside, "new"), Path(beside, "old")
        new.mkdir()
        yield new
        try:
            if path.exists():
                path.rename(old)
            new.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` for a file that takes its place at the end, unless something is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as beside:
        new = Path(beside, path.name)
        yield new
        os.replace(new, path)
