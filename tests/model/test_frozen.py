from pathlib import Path

import pytest
import torch
from torch import Tensor

from hmtl_dist.engine.base import EngineState
from hmtl_dist.engine.checkpoint import load_weights, save_checkpoint
from hmtl_dist.errors import UserError
from hmtl_dist.model.frozen import FrozenNet, build_frozen
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.tasks.base import LinearHead
from hmtl_dist.tasks.inpainting import InpaintingConfig
from hmtl_dist.tasks.puzzling import PuzzlingConfig

CONFIG = ModelConfig(backbone="test_efficientnet")


def model() -> HMTLModel:
    return HMTLModel(CONFIG, {"gender": LinearHead(2)}, {"gender": ("clean",)})


def frozen(**options: str | float | tuple[int, ...]) -> FrozenNet:
    return build_frozen({"paint": InpaintingConfig.model_validate(options)}, CONFIG, load_weights)["paint"]


def saved(folder: Path, module: HMTLModel) -> str:
    """Save a model as a run does, and return the checkpoint's folder."""
    state = EngineState(model=module.state_dict(), optimizer={}, ema={}, counters={"global_step": 1, "micro_step": 1})
    return save_checkpoint(str(folder / "checkpoints"), 1, state, {}, {})


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_only_in_painting_with_a_perceptual_part_needs_a_network() -> None:
    tasks = {"a": InpaintingConfig(perceptual_weight=0.0), "b": PuzzlingConfig(), "c": InpaintingConfig()}

    assert list(build_frozen(tasks, CONFIG, load_weights)) == ["c"]


def test_the_average_starts_as_a_copy_of_the_encoder() -> None:
    followed, net = model(), frozen()

    net.follow(followed.backbone)

    images = torch.rand(2, 3, 32, 32)
    expected = followed.eval().backbone.early(images, (1, 2))
    for feature, other in zip(net.features(images), expected, strict=True):
        assert torch.equal(feature, other)


def test_a_step_moves_the_average_by_what_momentum_leaves() -> None:
    followed, net = model(), frozen(momentum=0.75)
    net.follow(followed.backbone)
    before = weights(net.backbone)
    with torch.no_grad():
        for tensor in (*followed.parameters(), *followed.buffers()):
            tensor.add_(1)

    net.after_step()

    moved = {name: value - before[name] for name, value in weights(net.backbone).items() if value.is_floating_point()}
    for difference in moved.values():
        torch.testing.assert_close(difference, torch.full_like(difference, 0.25), atol=1e-5, rtol=0)


def test_it_is_never_trained_and_keeps_its_statistics() -> None:
    net = frozen().train()
    before = weights(net)

    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    torch.autograd.backward([feature.sum() for feature in net.features(images)])

    assert images.grad is not None
    assert all(parameter.grad is None for parameter in net.parameters())
    torch.testing.assert_close(weights(net), before, atol=0, rtol=0)


def test_stages_behind_the_compared_ones_are_dropped() -> None:
    shallow, deep = frozen(layers=(0,)), frozen(layers=(0, 3))

    assert len(list(shallow.parameters())) < len(list(deep.parameters())) / 2


def test_the_average_is_kept_and_restored() -> None:
    followed, one, two = model(), frozen(), frozen()
    one.follow(followed.backbone)

    two.load_state(one.state())

    torch.testing.assert_close(weights(two), weights(one), atol=0, rtol=0)


def test_a_checkpoint_of_ours_is_read_and_then_stays(tmp_path: Path) -> None:
    trained = model()
    net = frozen(frozen=saved(tmp_path, trained))
    net.follow(model().backbone)
    net.after_step()

    images = torch.rand(2, 3, 32, 32)
    expected = trained.eval().backbone.early(images, (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(net.features(images), expected, strict=True))
    assert net.state() == {}


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path) -> None:
    other = HMTLModel(ModelConfig(backbone="test_resnet"), {"a": LinearHead(2)}, {"a": ("clean",)})
    with pytest.raises(UserError, match=r"^tasks\.paint\.frozen: checkpoint .* holds another backbone"):
        frozen(frozen=saved(tmp_path, other))


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, model())
    weights_file = Path(checkpoint) / "model.safetensors"
    data = bytearray(weights_file.read_bytes())
    data[-1] ^= 1
    weights_file.write_bytes(data)

    with pytest.raises(
        UserError, match=r"^tasks\.paint\.frozen: checkpoint .* model\.safetensors does not match its digest"
    ):
        frozen(frozen=checkpoint)


def test_a_folder_that_is_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^tasks\.paint\.frozen: .* is no checkpoint: it has no manifest\.json"):
        frozen(frozen=str(tmp_path))


def test_an_unknown_network_names_the_setting() -> None:
    with pytest.raises(UserError, match=r"^tasks\.paint\.frozen: timm has no model 'vgg61'.*or give 'ema'"):
        frozen(frozen="vgg61")


def test_a_layer_too_deep_is_refused() -> None:
    with pytest.raises(UserError, match=r"^tasks\.paint\.layers: 9 is too deep; .* feature maps 0 to 4"):
        frozen(layers=(1, 9))
