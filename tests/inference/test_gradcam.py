"""Grad-CAM against what can be said without gradients."""

import pytest
import torch

from hmtl_dist.inference.gradcam import grad_cam, has_maps
from hmtl_dist.inference.model import InferenceModel
from hmtl_dist.model.hmtl import ModelConfig
from hmtl_dist.tasks.reading import HeadOutput

HEADS = {
    "expression": HeadOutput(type="classification", names=("happy", "sad", "anger")),
    "age": HeadOutput(type="regression", names=("age",), offset=(40.0,), scale=(20.0,)),
}


def build(backbone: str) -> InferenceModel:
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    return InferenceModel(ModelConfig(backbone=backbone), HEADS)


@pytest.mark.parametrize(("task", "index"), [("expression", 1), ("age", 0)])
def test_behind_an_averaging_pool_the_weights_are_those_of_the_head(task: str, index: int) -> None:
    """An output is linear in the map's averages there, so the gradient is the head's row (the paper, section 3)."""
    model = build("resnet10t")
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        features = model.model.backbone(images)
        row = model.get_parameter(f"model.heads.{task}.linear.weight")[index]
        expected = torch.einsum("c,bchw->bhw", row, features).relu()
        expected /= expected.amax((1, 2), keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close(grad_cam(model, images, task, index), expected, rtol=1e-4, atol=1e-5)


def test_a_map_is_the_same_where_gradients_are_off_and_leaves_none() -> None:
    model = build("resnet10t")
    images = torch.rand(1, 3, 64, 64)
    heat = grad_cam(model, images, "expression", 0)
    with torch.no_grad():
        assert torch.equal(grad_cam(model, images, "expression", 0), heat)
    assert not heat.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_tokens_are_no_map() -> None:
    assert has_maps(build("resnet10t"), 64)
    assert not has_maps(build("test_vit"), 160)


def test_a_backbone_whose_channels_come_last_gives_a_map_of_its_cells() -> None:
    heat = grad_cam(build("swin_tiny_patch4_window7_224"), torch.rand(1, 3, 224, 224), "expression", 0)
    assert heat.shape == (1, 7, 7)
    assert 0 <= float(heat.min()) < float(heat.max()) == 1
