"""The process group as tasks see it, over `torch.distributed`."""

import torch
import torch.distributed as dist
from torch import Tensor


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
