"""Memory that ends where the process may not read or write: an access beyond a tensor's end kills the process there.

Triton's interpreter reads and writes wherever a pointer leads; without a guard, an unmasked access goes unnoticed.
"""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

_PAGE = mmap.PAGESIZE
_NO_ACCESS = 0
_libc = ctypes.CDLL(None, use_errno=True)


def guarded_bytes(size: int) -> Tensor:
    """[size] uint8 between two pages that may not be touched, its end at the second."""
    pages = max(1, -(-size // _PAGE))
    memory = mmap.mmap(-1, (pages + 2) * _PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + (pages + 1) * _PAGE):
        if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), _NO_ACCESS) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=(pages + 1) * _PAGE - size)


@contextmanager
def guarded_launches() -> Iterator[None]:
    """Within it, every kernel launch gets copies of its tensors in guarded memory; what it wrote is copied back.

    Whole storages are copied, so that views and arguments that share memory stay what they are.
    """
    launch = InterpretedFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        copies: dict[int, tuple[Tensor, Tensor]] = {}

        def guard(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.untyped_storage().nbytes() == 0:
                return value
            storage = value.untyped_storage()
            if storage.data_ptr() not in copies:
                original = torch.empty(0, dtype=torch.uint8).set_(storage)
                copies[storage.data_ptr()] = original, guarded_bytes(len(original)).copy_(original)
            _, copy = copies[storage.data_ptr()]
            return copy.view(value.dtype).as_strided(value.shape, value.stride(), value.storage_offset())

        result = launch(self, *map(guard, args), **{name: guard(value) for name, value in kwargs.items()})
        for original, copy in copies.values():
            original.copy_(copy)
        return result

    InterpretedFunction.run = run
    try:
        yield
    finally:
        InterpretedFunction.run = launch
