"""Folders and files that are written beside and renamed, so that a failure leaves what was there."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def sha256(content: bytes) -> str:
    """Of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def checksum(facts: dict[str, Any]) -> str:
    """Of everything that a JSON object says but its own "checksum"."""
    others = {name: value for name, value in facts.items() if name != "checksum"}
    return sha256(json.dumps(others, sort_keys=True).encode())


@contextmanager
def locked(folder: Path, argument: str) -> Iterator[None]:
    """Holds a folder, so that no other process that asks can hold it; one that is killed lets go of it.

    Raises:
        BlockingIOError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{argument}: {folder} is in use by another process") from None
        yield
    finally:
        os.close(descriptor)
