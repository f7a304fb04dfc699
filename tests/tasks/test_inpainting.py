import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from hmtl_dist.tasks.base import SingleRank
from hmtl_dist.tasks.inpainting import Inpainting, InpaintingConfig, draw_masks
from tests.tasks.batches import DEVICES, make_inputs
from tests.tasks.reference import Array, check_loss

MASKS_DIGEST = "513332bdccc0d7d6bd626420bacf91a117a11d29037658794c4abb883304b1ca"


class Patches:
    """Frozen features that are simple enough to be written down again: means of 2 x 2 patches, and the picture."""

    def features(self, images: Tensor) -> list[Tensor]:
        return [torch.nn.functional.avg_pool2d(images, 2), images]

    def after_step(self) -> None: ...

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: object) -> None: ...


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(16, 70),
    width=st.integers(16, 70),
    seed=st.integers(0, 2**63),
    shares=st.sampled_from([(0.2, 0.4), (0.05, 0.2), (0.5, 0.8), (0.3, 0.4)]),
)
def test_masks_hide_a_share_between_the_bounds(height: int, width: int, seed: int, shares: tuple[float, float]) -> None:
    masks = draw_masks(seed, 1, torch.arange(40), height, width, shares)

    hidden = masks.double().mean((1, 2))
    assert (hidden >= shares[0]).all()
    assert (hidden <= shares[1]).all()


def test_masks_rarely_need_the_rows_that_fill_them_up() -> None:
    masks = draw_masks(0, 0, torch.arange(2000), 64, 64, (0.2, 0.4))

    full_rows = masks.all(2)
    assert (full_rows[:, 0] | full_rows[:, -1]).double().mean() < 0.02


def test_masks_lie_everywhere() -> None:
    masks = draw_masks(0, 0, torch.arange(2000), 32, 32, (0.2, 0.4))

    often = masks.double().mean(0)
    assert often.min() > 0.05
    assert often.max() < 0.6


def test_a_mask_depends_on_its_position_only() -> None:
    alone = draw_masks(5, 2, torch.tensor([77]), 32, 32, (0.2, 0.4))

    among = draw_masks(5, 2, torch.arange(70, 80), 32, 32, (0.2, 0.4))

    assert torch.equal(among[7], alone[0])


@pytest.mark.parametrize("device", DEVICES)
def test_masks_are_the_same_on_every_device(device: str) -> None:
    masks = draw_masks(11, 2, torch.arange(500).to(device), 64, 48, (0.2, 0.4))

    # A digest of the masks of the first run, so that no device and no release changes them unnoticed.
    assert hashlib.sha256(masks.cpu().numpy().tobytes()).hexdigest() == MASKS_DIGEST


@pytest.mark.parametrize("fill", ["grey", "mean"])
def test_hidden_pixels_show_the_fill_and_the_others_the_picture(fill: str) -> None:
    inputs = make_inputs()
    config = InpaintingConfig.model_validate({"fill": fill, "perceptual_weight": 0.0})

    prepared = Inpainting("inpainting", config, None).prepare(inputs)

    hidden = prepared.targets["hidden"].expand_as(inputs.images)
    view = prepared.views["inpainting"]
    colour = inputs.images.mean((2, 3), keepdim=True) if fill == "mean" else torch.tensor(0.5)
    assert torch.equal(view[~hidden], inputs.images[~hidden])
    assert torch.equal(view[hidden], colour.expand_as(view)[hidden])


def unit(features: NDArray[np.float64]) -> NDArray[np.float64]:
    return features / np.sqrt((features**2).sum(0, keepdims=True) + 1e-6)


def test_the_loss_is_l1_on_hidden_pixels_and_the_distance_of_unit_features() -> None:
    size = 12
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = make_inputs(images, weight=torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    task = Inpainting("inpainting", InpaintingConfig(perceptual_weight=0.7), Patches())
    targets = task.prepare(inputs).targets

    def reference(restored: Array) -> float:
        losses: list[float] = []
        for b in (0, 2):
            hidden, original = targets["hidden"][b, 0].numpy(), images[b].numpy()
            completed = np.where(hidden, restored[b], original)
            layers = [((unit(f(completed)) - unit(f(original))) ** 2).sum(0).mean() for f in (pooled, np.array)]
            losses.append(float(np.abs(restored[b] - original)[:, hidden].mean() + 0.7 * np.mean(layers)))
        return float(np.mean(losses))

    output = np.random.default_rng(1).uniform(0, 1, (3, 3, size, size))
    check_loss(task, inputs, reference, output, view="inpainting", targets=targets)


def pooled(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    channels, height, width = picture.shape
    return picture.reshape(channels, height // 2, 2, width // 2, 2).mean((2, 4))


def test_the_gradient_is_finite_and_only_on_hidden_pixels() -> None:
    inputs = make_inputs(torch.zeros(2, 3, 24, 24))
    task = Inpainting("inpainting", InpaintingConfig(), Patches())
    prepared = task.prepare(inputs)
    output = torch.zeros(2, 3, 24, 24, requires_grad=True)  # black on black: features of no length
    shifted = output + 0.1 * torch.rand(2, 3, 24, 24)

    loss = task.loss({"inpainting": shifted}, prepared, inputs, SingleRank()).sum
    (gradient,) = torch.autograd.grad(loss, output)

    hidden = prepared.targets["hidden"].expand_as(gradient)
    assert torch.isfinite(gradient).all()
    assert (gradient[~hidden] == 0).all()
    assert (gradient[hidden] != 0).any()


def test_illustrations_are_the_picture_the_masked_one_and_the_completed_one() -> None:
    inputs = make_inputs()
    task = Inpainting("inpainting", InpaintingConfig(perceptual_weight=0.0), None)
    prepared = task.prepare(inputs)

    shown = task.illustrate({"inpainting": torch.zeros_like(inputs.images)}, prepared, inputs)

    assert torch.equal(shown["picture"], inputs.images)
    assert torch.equal(shown["hidden"], prepared.views["inpainting"])
    assert torch.equal(shown["restored"], inputs.images * ~prepared.targets["hidden"])


def test_bounds_too_close_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden_max=0\.3 must exceed hidden_min=0\.25"):
        InpaintingConfig(hidden_min=0.25, hidden_max=0.3)
