import importlib
import io
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hmtl_dist.augment import PRESETS, AugmentConfig, GeometricTransform
from hmtl_dist.augment.photometric import CACHE_BYTES, cutout, photometric
from hmtl_dist.data.decode import DecodeError
from hmtl_dist.tasks.so3 import GEOMETRY

ndimage: Any = importlib.import_module("scipy.ndimage")  # publishes no types

STILL = {"crop_min": 1.0, "crop_max": 1.0, "rotation": 0.0, "contrast_min": 1.0, "contrast_max": 1.0}
"""Overrides of the preset `weak` that leave a picture as it is."""
POSE = ("yaw", "pitch", "roll")


def encode(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 98, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()


def smooth(height: int = 64, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).random((height, width, 3))
    blurred = ndimage.gaussian_filter(noise, (4, 4, 0))
    return ((blurred - blurred.min()) / np.ptp(blurred) * 255).astype(np.uint8)


def transform(size: int = 64, *, train: bool = True, **options: float | str) -> GeometricTransform:
    return GeometricTransform(AugmentConfig.model_validate({**STILL, **options}), size, GEOMETRY, 0, train=train)


def picture(pixels: NDArray[np.uint8], params: list[float], size: int = 64, kind: str = "PNG") -> NDArray[np.uint8]:
    out = np.zeros((size, size, 3), np.uint8)
    transform(size).picture(encode(pixels, kind), np.array(params, np.float32), out)
    return out


# --- configuration


def test_a_preset_fills_what_is_not_given() -> None:
    config = AugmentConfig.model_validate({"preset": "strong", "flip": 0.25})

    assert (config.flip, config.rotation, config.noise) == (0.25, 25.0, 0.05)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_can_be_named_alone(preset: str) -> None:
    assert AugmentConfig.model_validate(preset) == AugmentConfig.model_validate({"preset": preset})


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"crop_min=0\.995 is above crop_max=0\.99"):
        AugmentConfig(crop_min=0.995)


# --- geometry


def test_identity_parameters_give_the_picture_itself() -> None:
    assert np.array_equal(picture(smooth(), [1, 0.5, 0.5, 0, 0]), smooth())


def test_a_flip_mirrors_the_picture() -> None:
    assert np.array_equal(picture(smooth(), [1, 0.5, 0.5, 0, 1]), smooth()[:, ::-1])


@pytest.mark.parametrize("angle", [90.0, -90.0])
def test_a_positive_angle_turns_counter_clockwise(angle: float) -> None:
    turned = picture(smooth(), [1, 0.5, 0.5, angle, 0])

    assert np.array_equal(turned, np.rot90(smooth(), 1 if angle > 0 else -1))


def test_a_rotation_agrees_with_scipy() -> None:
    turned = picture(smooth(), [1, 0.5, 0.5, 20, 0])

    expected = ndimage.rotate(smooth().astype(float), 20, order=1, reshape=False)
    assert np.abs(turned.astype(float) - expected)[16:-16, 16:-16].max() < 2


def test_a_crop_is_the_part_it_names_resized() -> None:
    cropped = picture(smooth(), [0.5, 0.0, 1.0, 0, 0], size=32)

    assert np.array_equal(cropped, smooth()[32:, :32])


def test_a_crop_of_a_wide_picture_is_square_and_stays_inside() -> None:
    wide = smooth(40, 100)

    assert np.array_equal(picture(wide, [1, 1.0, 0.5, 0, 0], size=40), wide[:, 60:])


def test_enlarging_agrees_with_opencv() -> None:
    enlarged = picture(smooth(), [1, 0.5, 0.5, 0, 0], size=160)

    expected = cv2.resize(smooth(), (160, 160), interpolation=cv2.INTER_LINEAR)
    assert np.abs(enlarged.astype(int) - expected.astype(int))[3:-3, 3:-3].max() <= 4  # the kernels round otherwise


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_picture_is_averaged_and_not_sampled(kind: str) -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255

    small = picture(stripes, [1, 0.5, 0.5, 0, 0], size=64, kind=kind)

    assert np.abs(small.astype(int) - 127).max() < 12


def test_evaluation_takes_the_central_crop() -> None:
    evaluation = transform(80, train=False)
    params = evaluation.draw(3, np.arange(2))
    out = np.zeros((80, 80, 3), np.uint8)
    evaluation.picture(encode(smooth(100, 100)), params[0], out)

    assert np.array_equal(out, smooth(100, 100)[10:90, 10:90])


def test_draws_stay_within_the_configured_ranges() -> None:
    params = transform(rotation=20.0, crop_min=0.7, crop_max=0.9, crop_position="random", flip=0.3).draw(
        1, np.arange(4000)
    )

    side, across, down, angle, flip = params.T
    for drawn, low, high in ((side, 0.7, 0.9), (across, 0, 1), (down, 0, 1), (angle, -20, 20)):
        margin = 0.01 * (high - low)
        assert low - 1e-6 <= drawn.min() < low + margin
        assert high - margin < drawn.max() <= high + 1e-6
    assert flip.mean() == pytest.approx(0.3, abs=0.03)


def test_a_draw_depends_on_epoch_and_position_only() -> None:
    drawn = transform(rotation=20.0)

    assert np.array_equal(drawn.draw(1, np.arange(5, 9)), drawn.draw(1, np.arange(20))[5:9])
    assert not np.array_equal(drawn.draw(1, np.arange(4)), drawn.draw(2, np.arange(4)))


def test_damaged_bytes_are_reported() -> None:
    with pytest.raises(DecodeError):
        transform().picture(b"\xff\xd8\xff nothing", np.ones(5, np.float32), np.zeros((64, 64, 3), np.uint8))


# --- labels


def angle_of_line(pixels: NDArray[np.uint8]) -> float:
    """Direction of a bright line, degrees counter-clockwise from the horizontal, -90 to 90."""
    rows, columns = np.nonzero(pixels[:, :, 0] > 100)
    across, up = columns - columns.mean(), rows.mean() - rows
    return float(np.degrees(0.5 * np.arctan2(2 * (across * up).sum(), (across**2 - up**2).sum())))


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("angle", [0.0, 17.0, -25.0])
def test_roll_follows_the_picture(angle: float, flip: int) -> None:
    roll = 12.0  # of a head whose line of the eyes rises to the right of the viewer
    pixels = np.zeros((128, 128, 3), np.uint8)
    end = np.array([np.cos(np.radians(roll)), -np.sin(np.radians(roll))]) * 40
    start, stop = np.round(64 - end).astype(int).tolist(), np.round(64 + end).astype(int).tolist()
    cv2.line(pixels, start, stop, (255, 255, 255), 3)
    params = [1, 0.5, 0.5, angle, flip]
    labels = {"roll": np.array([angle_of_line(pixels)], np.float32)}

    transform().labels(labels, np.array([params], np.float32))

    assert labels["roll"][0] == pytest.approx(angle_of_line(picture(pixels, params, 128)), abs=0.5)


def test_a_flip_negates_yaw_and_leaves_pitch() -> None:
    labels = {name: np.array([10.0, 10.0, np.nan], np.float32) for name in POSE}

    transform().labels(labels, np.array([[1, 0.5, 0.5, 0, flip] for flip in (0, 1, 1)], np.float32))

    assert np.array_equal(labels["yaw"], np.array([10, -10, np.nan], np.float32), equal_nan=True)
    assert np.array_equal(labels["pitch"], np.array([10, 10, np.nan], np.float32), equal_nan=True)


def test_roll_may_be_counted_clockwise() -> None:
    labels = {"roll": np.array([10.0], np.float32)}

    transform(roll_positive="clockwise").labels(labels, np.array([[1, 0.5, 0.5, 20, 0]], np.float32))

    assert labels["roll"].tolist() == [-10.0]


def test_roll_stays_within_half_a_turn() -> None:
    labels = {"roll": np.array([170.0], np.float32)}

    transform().labels(labels, np.array([[1, 0.5, 0.5, 25, 0]], np.float32))

    assert labels["roll"].tolist() == [-165.0]


# --- colours


def images(num_samples: int = 6, size: int = 24) -> torch.Tensor:
    pixels = torch.rand(num_samples, size, size, 3, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    return pixels.permute(0, 3, 1, 2)


def coloured(pictures: torch.Tensor, **options: float) -> torch.Tensor:
    config = AugmentConfig.model_validate({**STILL, **options})
    return photometric(pictures, config, 0, 0, torch.arange(len(pictures)))


STRONG = {key: value for key, value in PRESETS["strong"].items() if isinstance(value, float)}


def test_without_amounts_pictures_are_not_touched() -> None:
    pictures = images()
    assert coloured(pictures) is pictures


@pytest.mark.parametrize(
    "amount",
    [
        {"contrast_min": 0.5},
        {"contrast_max": 1.5},
        {"brightness": 0.1},
        {"jitter_probability": 1.0, "jitter_saturation": 0.4},
        {"jitter_probability": 1.0, "jitter_hue": 0.1},
        {"grey_probability": 1.0},
        {"blur_probability": 1.0, "blur_sigma": 0.02},
        {"noise": 0.1},
    ],
    ids=str,
)
def test_one_amount_alone_changes_pictures(amount: dict[str, float]) -> None:
    assert (coloured(images(), **amount) - images()).abs().max() > 0.01


def test_a_sample_is_changed_alike_in_any_batch() -> None:
    config = AugmentConfig.model_validate(STRONG)
    whole = photometric(images(), config, 0, 0, torch.arange(6))

    alone = photometric(images()[2:4], config, 0, 0, torch.arange(2, 4))

    torch.testing.assert_close(alone, whole[2:4], atol=1e-6, rtol=0)


def test_strong_changes_stay_between_black_and_white_and_keep_the_memory_format() -> None:
    changed = coloured(images(), **STRONG)

    assert 0 <= changed.min() <= changed.max() <= 1
    assert changed.is_contiguous(memory_format=torch.channels_last)


def test_contrast_scales_about_the_mean_grey() -> None:
    changed = coloured(images(), contrast_min=0.5, contrast_max=0.5)

    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    mean = (images() * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    torch.testing.assert_close(changed, (images() - mean) * 0.5 + mean, atol=1e-6, rtol=0)


def test_brightness_shifts_each_picture_by_its_own_amount() -> None:
    shifts = (coloured(images(), brightness=0.1) - images()).flatten(1)

    assert shifts.std(1).max() < 1e-6
    assert shifts.mean(1).abs().max() <= 0.1
    assert shifts.mean(1).std() > 0.01


def test_grey_pictures_have_the_luma_in_every_channel() -> None:
    changed = coloured(images(), grey_probability=1.0)

    expected = (images() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(changed, expected.expand_as(changed), atol=1e-6, rtol=0)


def test_hue_and_saturation_keep_greys_and_luma() -> None:
    grey = torch.full((6, 3, 4, 4), 0.4)
    options = {"jitter_probability": 1.0, "jitter_saturation": 0.3, "jitter_hue": 0.03}

    torch.testing.assert_close(coloured(grey, **options), grey, atol=1e-6, rtol=0)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    changed = coloured(images(), **options)
    torch.testing.assert_close((changed * luma).sum(1), (images() * luma).sum(1), atol=1e-5, rtol=0)
    assert (changed - images()).abs().max() > 0.02


def test_blur_is_gaussian() -> None:
    config = {"blur_probability": 1.0, "blur_sigma": 0.02}
    point = torch.zeros(64, 3, 101, 101)
    point[:, :, 50, 50] = 1.0

    rows = coloured(point, **config)[:, 0].sum(2)

    offsets = torch.arange(101) - 50.0
    deviation = (rows * offsets**2).sum(1).sqrt()
    torch.testing.assert_close(rows.sum(1), torch.ones(64), atol=1e-4, rtol=0)
    assert deviation.max() <= 2.02
    assert deviation.max() > 1.7
    sharpest = ndimage.gaussian_filter1d(np.eye(1, 101, 50)[0], float(deviation.max()))
    assert np.abs(rows[deviation.argmax()].numpy() - sharpest).max() < 0.01


def test_noise_has_a_deviation_of_its_own_for_each_picture() -> None:
    grey = torch.full((200, 3, 16, 16), 0.5)

    deviations = (coloured(grey, noise=0.05) - grey).flatten(1).std(1)

    assert deviations.max() <= 0.055
    assert deviations.mean() == pytest.approx(0.025, abs=0.004)


def test_a_cut_out_is_one_grey_square_wholly_inside() -> None:
    config = AugmentConfig(cutout_probability=1.0, cutout_side=0.27)
    pictures = torch.zeros(50, 3, 100, 100)

    covered = (cutout(pictures, config, 0, 0, torch.arange(50)) == 0.5).all(1)

    assert covered.any(2).sum(1).numpy().tolist() == [27] * 50
    assert covered.any(1).sum(1).numpy().tolist() == [27] * 50
    assert len({tuple(torch.nonzero(mask)[0].numpy().tolist()) for mask in covered}) > 40


def test_a_cut_out_happens_as_often_as_asked() -> None:
    config = AugmentConfig(cutout_probability=0.25)

    changed = cutout(torch.zeros(2000, 3, 8, 8), config, 0, 0, torch.arange(2000)).flatten(1).any(1)

    assert changed.double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_a_batch_cut_into_parts_is_changed_as_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.rand(80, 64, 64, 3).permute(0, 3, 1, 2)
    positions, config = torch.arange(80), AugmentConfig(preset="strong")
    parts = photometric(pictures, config, 7, 1, positions)
    monkeypatch.setattr("hmtl_dist.augment.photometric.CACHE_BYTES", pictures.nbytes)
    assert pictures.nbytes > CACHE_BYTES
    assert torch.equal(parts, photometric(pictures, config, 7, 1, positions))
    assert parts.is_contiguous(memory_format=torch.channels_last)
