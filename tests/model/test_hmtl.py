import subprocess
import sys

import pytest
import torch

from hmtl_dist.errors import UserError
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.tasks.base import DecoderHead, HeadSpec, LinearHead

HEADS: dict[str, HeadSpec] = {
    "gender": LinearHead(2),
    "puzzling": LinearHead(16),
    "inpainting": DecoderHead(),
}
WIRING = {"gender": ("clean", "puzzling"), "puzzling": ("puzzling",), "inpainting": ("inpainting",)}


def build(backbone: str = "test_convnext", **options: bool) -> HMTLModel:
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    return HMTLModel(ModelConfig(backbone=backbone, options=dict(options)), HEADS, WIRING)


def views(size: int = 32, num_samples: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = ("clean", "puzzling", "inpainting")
    return {name: torch.rand(num_samples, 3, size, size, generator=generator) for name in names}


def test_every_head_answers_for_the_views_it_reads() -> None:
    outputs = build()(views())

    assert {task: {view: tuple(value.shape) for view, value in read.items()} for task, read in outputs.items()} == {
        "gender": {"clean": (2, 2), "puzzling": (2, 2)},
        "puzzling": {"puzzling": (2, 16)},
        "inpainting": {"inpainting": (2, 3, 32, 32)},
    }


@pytest.mark.parametrize("backbone", ["test_convnext", "test_resnet", "test_efficientnet", "test_vit"])
@pytest.mark.parametrize("size", [64, 97])
def test_backbones_of_other_kinds_and_sizes_work(backbone: str, size: int) -> None:
    options = {"dynamic_img_size": True, "dynamic_img_pad": True} if backbone == "test_vit" else {}

    outputs = build(backbone, **options)(views(size))

    assert outputs["inpainting"]["inpainting"].shape == (2, 3, size, size)


def test_views_do_not_influence_one_another() -> None:
    model, given = build(), views()

    outputs = model(given)

    alone = model({**views(), "clean": torch.zeros(2, 3, 32, 32), "inpainting": torch.zeros(2, 3, 32, 32)})
    torch.testing.assert_close(outputs["gender"]["puzzling"], alone["gender"]["puzzling"])


def test_prediction_is_the_supervised_head_on_the_clean_picture() -> None:
    model, given = build().eval(), views()

    predicted = model.predict(given["clean"])

    assert list(predicted) == ["gender"]
    torch.testing.assert_close(predicted["gender"], model(given)["gender"]["clean"])


@pytest.mark.parametrize("wiring", [WIRING, {"inpainting": ("inpainting",)}, {"puzzling": ("puzzling",)}])
def test_every_parameter_gets_a_gradient(wiring: dict[str, tuple[str, ...]]) -> None:
    model = HMTLModel(ModelConfig(backbone="test_efficientnet"), {name: HEADS[name] for name in wiring}, wiring)

    outputs = model(views())
    torch.autograd.backward([value.sum() for read in outputs.values() for value in read.values()])

    assert [name for name, value in model.named_parameters() if value.grad is None] == []


def test_restored_pictures_lie_between_black_and_white() -> None:
    restored = build()(views())["inpainting"]["inpainting"]

    assert 0 <= restored.min() <= restored.max() <= 1


def test_log_variances_are_parameters_and_come_back_with_the_outputs() -> None:
    model = HMTLModel(ModelConfig(backbone="test_convnext"), HEADS, WIRING, log_vars=("gender", "puzzling"))

    log_vars = model(views())["weighting"]["log_vars"]

    assert log_vars is dict(model.named_parameters())["log_vars"]
    assert log_vars.detach().numpy().tolist() == [0, 0]


def test_channels_last_memory_changes_nothing() -> None:
    model, given = build("test_resnet").eval(), views()

    outputs = model({name: view.contiguous(memory_format=torch.channels_last) for name, view in given.items()})

    expected = model(given)
    torch.testing.assert_close(outputs["inpainting"], expected["inpainting"], atol=1e-5, rtol=1e-4)


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^model\.backbone: timm has no model 'eficientnet_b0'; did you mean 'effici"):
        build("eficientnet_b0")


def test_an_option_the_backbone_does_not_take_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"^model\.backbone: timm's 'test_resnet': cannot build it: .*no_such"
    ) as caught:
        build("test_resnet", no_such=True)

    assert "\n" not in str(caught.value)


def test_importing_the_model_does_not_import_timm() -> None:
    code = "import sys, hmtl_dist.model.hmtl; sys.exit('timm' in sys.modules or 'torchvision' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("wanted", "idle"), [(False, 0), (True, 9)])
def test_from_scratch_each_of_the_nine_residual_blocks_may_begin_as_the_identity(wanted: bool, idle: int) -> None:
    config = ModelConfig(zero_init_residual=wanted)
    model = HMTLModel(config, {"gender": LinearHead(2)}, {"gender": ("clean",)})
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert sum(bool((norm.weight == 0).all()) for norm in norms) == idle
