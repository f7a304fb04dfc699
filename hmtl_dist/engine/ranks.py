"""The process group as tasks see it, over `torch.distributed`, and what rank 0 reads for all."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from hmtl_dist.errors import UserError

T = TypeVar("T")


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this is rank 0, as a process without a group is."""
    return not dist.is_initialized() or dist.get_rank() == 0


class TorchRanks:
    """The default process group (gloo or NCCL), as `hmtl_dist.tasks.base.Ranks`.

    Raises:
        RuntimeError: `torch.distributed` was not initialised.
    """

    def __init__(self) -> None:
        if not dist.is_initialized():
            raise RuntimeError("torch.distributed is not initialised; a single process uses SingleRank")
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the element-wise sum over ranks, detached; collective."""
        total = tensor.detach().clone()
        dist.all_reduce(total)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
        return total

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the ranks' equal-shaped tensors joined along axis 0, differentiable in the own part; collective."""
        source = tensor.detach().contiguous()
        parts = [torch.empty_like(source) for _ in range(self.world_size)]
        dist.all_gather(parts, source)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
        parts[self.rank] = tensor
        return torch.cat(parts)


def read_by_first(read: Callable[[], T]) -> T:
    """Have rank 0 read something, and hand it to all; collective, where there is a process group.

    Raises:
        UserError: Rank 0 met it; every rank raises it.
    """
    if world_size() == 1:
        return read()
    box: list[Any] = [None, None]
    if is_first():
        try:
            box[0] = read()
        except UserError as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return cast("T", box[0])


def tensors_of_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give every rank rank 0's tensors, on CPU; collective, one of them at a time.

    Args:
        tensors: By name, on rank 0; what other ranks give is not looked at.
    """
    if world_size() == 1:
        return dict(tensors)
    first = is_first()
    forms = read_by_first(lambda: [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()])
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    given: dict[str, Tensor] = {}
    for name, shape, dtype in forms:
        # as bytes, which every backend takes; a scalar has no bytes to look at, a row of one has
        whole = tensors[name].contiguous() if first else torch.empty(shape, dtype=dtype)
        if whole.numel():
            sent = whole.reshape(-1).view(torch.uint8).to(device)
            dist.broadcast(sent, 0)
            if not first:
                whole = sent.cpu().view(dtype).reshape(shape)
        given[name] = whole
    return given
