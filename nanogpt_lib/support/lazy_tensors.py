"""Named tensors that are read from their files when asked for, and not kept."""

from collections.abc import Callable, Iterator, MutableMapping

import torch
from torch import Tensor


class LazyTensors(MutableMapping):
    """A state dict whose tensors are made one at a time, so that it never takes a model's memory.

    `shapes` has all names, with a tensor on the meta device for each; `read` makes the tensor of a
    name. Assigned ones are kept.
    """

    def __init__(self, shapes: dict[str, Tensor], read: Callable[[str], Tensor]):
        self.shapes, self.read = shapes, read
        self.given: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor."""
        if name not in self.shapes:
            raise KeyError(name)
        return self.given[name] if name in self.given else self.read(name)

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        """Put a tensor in the place of the one in the files."""
        self.given[name], self.shapes[name] = tensor, tensor.to("meta")

    def __delitem__(self, name: str) -> None:
        """Forget a name."""
        del self.shapes[name]
        self.given.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.shapes)

    def __len__(self) -> int:
        """The number of names."""
        return len(self.shapes)


def without_contents(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """float32 tensors of these shapes on the meta device."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
