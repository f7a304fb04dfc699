"""A model that cannot be built, or cannot read its pictures, is refused with the settings that would do."""

from typing import Any

import pytest
import torch

from hmtl_dist.errors import UserError
from hmtl_dist.model.fits import check_frozen, check_model
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.tasks.base import DecoderHead, HeadSpec, LinearHead
from hmtl_dist.tasks.inpainting import InpaintingConfig

HEADS: dict[str, HeadSpec] = {"mood": LinearHead(3)}
WIRING = {"mood": ("clean",)}
TRANSFORMER = "vit_tiny_patch16_224"
"""A model that takes pictures of one size, unless an option says otherwise."""


def refusal(config: ModelConfig, image_size: int, pictures: int = 8) -> str:
    with pytest.raises(UserError) as refused:
        check_model(config, HEADS, WIRING, image_size=image_size, pictures=pictures)
    return str(refused.value)


@pytest.mark.parametrize("name", ["test_vit", "test_byobnet", "test_efficientnet", "test_convnext", "levit_128s"])
def test_what_can_be_trained_is_let_through_and_builds_nothing(name: str) -> None:
    generator = torch.get_rng_state()
    config = ModelConfig(backbone=name, pretrained=True)  # whose weights are not fetched for this
    side = 224 if name == "levit_128s" else 160
    check_model(config, HEADS, WIRING, image_size=side, pictures=8)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_decoder_is_tried_too() -> None:
    heads = HEADS | {"paint": DecoderHead()}
    check_model(ModelConfig(backbone="test_byobnet"), heads, WIRING | {"paint": ("paint",)}, image_size=32, pictures=8)


def test_a_transformer_of_other_pictures_is_refused_with_what_would_do() -> None:
    config = ModelConfig(backbone=TRANSFORMER)
    said = refusal(config, 64)
    assert said.startswith(
        "model.backbone: timm's 'vit_tiny_patch16_224' cannot read pictures of 64 x 64 pixels (Input height (64)"
    )
    remedies = said.rpartition("; set ")[2].split(", or ")
    assert remedies == ["model.options.img_size=64", "model.options.dynamic_img_size=true", "data.image_size=224"]
    options: list[dict[str, Any]] = [{"img_size": 64}, {"dynamic_img_size": True}]
    for one in options:
        model = HMTLModel(config.model_copy(update={"options": one}), HEADS, WIRING)
        assert model({"clean": torch.rand(2, 3, 64, 64)})["mood"]["clean"].shape == (2, 3)


def test_one_picture_a_step_of_a_last_map_of_one_pixel_has_no_batch_statistics() -> None:
    config = ModelConfig(backbone="test_efficientnet")
    check_model(config, HEADS, WIRING, image_size=32, pictures=2)
    said = refusal(config, 32, pictures=1)
    assert "cannot read pictures of 32 x 32 pixels (Expected more than 1 value per channel when training" in said
    assert "; set a data.batch_size of two pictures or more for each worker's step" in said


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"backbone": "test_vitt"}, "model.backbone: timm has no model 'test_vitt'; did you mean 'test_vit'?"),
        ({"backbone": "test_vit", "options": {"depthh": 2}}, "model.backbone: timm's 'test_vit': cannot build it: "),
    ],
)
def test_a_backbone_that_cannot_be_built(section: dict[str, Any], said: str) -> None:
    assert refusal(ModelConfig.model_validate(section), 32).startswith(said)


def test_a_backbone_of_a_hub_is_left_to_the_workers() -> None:
    check_model(ModelConfig(backbone="hf-hub:nobody/nothing"), HEADS, WIRING, image_size=32, pictures=8)


@pytest.mark.parametrize(
    ("section", "model", "said"),
    [
        (
            {"layers": [0, 9]},
            "test_byobnet",
            r"tasks\.paint\.layers: 9 is too deep; the frozen network has feature maps 0 ",
        ),
        ({"frozen": "test_vitt"}, "test_byobnet", r"tasks\.paint\.frozen: timm has no model 'test_vitt'"),
        (
            {"frozen": TRANSFORMER},
            "test_byobnet",
            rf"tasks\.paint\.frozen: timm's '{TRANSFORMER}' cannot read .*; set data\.image_",
        ),
    ],
)
def test_a_frozen_network_is_tried_too(section: dict[str, Any], model: str, said: str) -> None:
    task = InpaintingConfig.model_validate(section)
    with pytest.raises(UserError, match=f"^{said}"):
        check_frozen({"paint": task}, ModelConfig(backbone=model), 32)


def test_a_frozen_network_that_fits_is_let_through() -> None:
    tasks = {"own": InpaintingConfig(layers=(0, 1)), "other": InpaintingConfig(frozen="test_efficientnet")}
    check_frozen(tasks, ModelConfig(backbone="test_byobnet"), 32)
    check_frozen({"hub": InpaintingConfig(frozen="hf-hub:nobody/nothing")}, ModelConfig(backbone="test_byobnet"), 32)
