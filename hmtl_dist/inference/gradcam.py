"""Which region of a picture spoke for an output, by the gradient at the last feature map.

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017
(arXiv 1610.02391), equations 1 and 2. Heads here sit on the pooled last map, so no hooks are needed: the map is an
intermediate value of the forward pass.

Shape legend: B pictures, C channels, h x w cells of the last feature map.
"""

from typing import Any, cast

import torch
from torch import Tensor

from hmtl_dist.inference.model import InferenceModel
from hmtl_dist.tasks.reading import read_output


@torch.inference_mode()
def has_maps(model: InferenceModel, image_size: int) -> bool:
    """Whether the backbone ends in a map of cells; a transformer's tokens, of which one may be read alone, are none."""
    device = next(model.parameters()).device
    return model.model.backbone(torch.zeros(1, 3, image_size, image_size, device=device)).ndim == 4


def grad_cam(model: InferenceModel, images: Tensor, task: str, index: int) -> Tensor:
    """Return maps `[B, h, w]` in [0, 1] of what raised an output; all 0 where nothing did.

    Args:
        model: A model with feature maps (`has_maps`).
        images: Pictures in [0, 1], float `[B, 3, H, W]`.
        task: The head.
        index: Which of its classes (the logit before the softmax is explained) or numbers.
    """
    backbone, head, reading = model.model.backbone, model.model.heads[task], model.readings[task]
    with torch.no_grad():
        features = backbone(images)
    with torch.enable_grad():
        features = features.detach().requires_grad_()
        output = cast("Tensor", head(backbone.pool(features)))
        read = output if reading.type == "classification" else read_output(reading, output)
        (gradient,) = cast("tuple[Tensor]", torch.autograd.grad(read[:, index].sum(), features))
    last = getattr(cast("Any", backbone.net), "output_fmt", "NCHW") == "NHWC"
    channels, cells = (3, (1, 2)) if last else (1, (2, 3))
    weights = gradient.mean(dim=cells, keepdim=True)
    heat = (weights * features.detach()).sum(channels).relu()
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
