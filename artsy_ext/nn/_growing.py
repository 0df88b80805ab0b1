"""Modules that grow with the tasks, and take the saved size when their state is loaded."""

from typing import Any, ClassVar

from torch import Tensor, nn


class Growing(nn.Module):
    """A module some of whose tensors grow; `load_state_dict` gives them the sizes of the saved ones.

    `growing` names those tensors with the axes that may differ; any other difference is an error, as always.
    """

    growing: ClassVar[dict[str, tuple[int, ...]]] = {}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, axes in self.growing.items():
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is None or saved.dim() != own.dim():
                continue
            if all(saved.shape[i] == own.shape[i] for i in range(own.dim()) if i not in axes):
                self.resize(name, own.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def resize(self, name: str, value: Tensor) -> None:
        """Replaces a buffer or parameter by one of another size."""
        own = getattr(self, name)
        if isinstance(own, nn.Parameter):
            value = nn.Parameter(value, requires_grad=own.requires_grad)
        setattr(self, name, value)
