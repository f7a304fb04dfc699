"""The section `augment` of the configuration: a preset, and every parameter of it."""

from typing import Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from hmtl_dist.config.base import Section

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
Concentration = Annotated[float, Field(ge=0.01, le=100)]

PRESETS: dict[str, dict[str, Any]] = {
    "none": {"flip": 0.5, "crop_min": 0.69, "crop_max": 0.69},
    "weak": {"contrast_min": 0.6, "contrast_max": 1.4, "rotation": 15.0, "crop_min": 0.69, "crop_max": 0.99},
    "strong": {
        "flip": 0.5,
        "rotation": 25.0,
        "crop_min": 0.69,
        "crop_max": 0.99,
        "crop_position": "random",
        "contrast_min": 0.6,
        "contrast_max": 1.4,
        "brightness": 0.05,
        "jitter_probability": 0.9,
        "jitter_saturation": 0.4,
        "jitter_hue": 0.05,
        "grey_probability": 0.3,
        "blur_probability": 0.5,
        "blur_sigma": 0.005,
        "noise": 0.05,
        "cutout_probability": 1.0,
    },
}
"""The authors' augmentation levels (arXiv 2105.06421 and their code); what a level does not name is off.

The strengths of colour jitter and blur, and how often a picture is blurred, are this project's own: the source names
only that they happen.
"""


class AugmentConfig(Section):
    """How training pictures are changed: a preset, and any of its parameters set otherwise."""

    preset: Literal["none", "weak", "strong"] = "weak"
    """Where every parameter that is not given comes from."""
    flip: Probability = 0.0
    """Probability of a mirror image."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Greatest rotation to either side, degrees."""
    crop_min: Fraction = 1.0
    """Least side of the square crop, as a share of the picture's shorter side."""
    crop_max: Fraction = 1.0
    """Greatest side of the square crop, as a share of the picture's shorter side."""
    crop_position: Literal["centre", "random"] = "centre"
    """Where the crop lies."""
    contrast_min: Amount = 1.0
    """Least contrast factor, about the picture's mean grey."""
    contrast_max: Amount = 1.0
    """Greatest contrast factor."""
    brightness: Amount = 0.0
    """Greatest brightness added or taken, as a share of white."""
    jitter_probability: Probability = 0.0
    """Probability that saturation and hue are changed."""
    jitter_saturation: Probability = 0.0
    """Greatest relative change of saturation."""
    jitter_hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Greatest turn of hue, in turns of the colour circle."""
    grey_probability: Probability = 0.0
    """Probability that a picture loses its colour."""
    blur_probability: Probability = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: Annotated[float, Field(ge=0, le=0.02)] = 0.0
    """Greatest standard deviation of the blur, as a share of the picture's side."""
    noise: Amount = 0.0
    """Greatest standard deviation of Gaussian noise, as a share of white; drawn for each picture."""
    cutout_probability: Probability = 0.0
    """Probability of a cut-out: a grey square laid over the picture, after puzzling."""
    cutout_side: Fraction = 0.27
    """Side of the cut-out, as a share of the picture's."""
    mixup_probability: Probability = 0.0
    """Probability that a picture and its label are blended with another's of the step; for classification alone."""
    mixup_alpha: Concentration = 0.2
    """Mixup's share is drawn from Beta(alpha, alpha): small values blend little, 1 blends evenly."""
    cutmix_probability: Probability = 0.0
    """Probability that a box of another picture is laid over a picture, whose label then counts by its area."""
    cutmix_alpha: Concentration = 1.0
    """The picture's share, before its box is cut off at the edges, is drawn from Beta(alpha, alpha)."""
    eval_crop: Fraction = 0.8
    """Side of the central crop when evaluating, as a share of the picture's shorter side."""
    roll_positive: Literal["counterclockwise", "clockwise"] = "counterclockwise"
    """Which way a head with a positive `roll` label is turned, as the viewer sees it; all sets that `data build` makes
    say counterclockwise, whatever their authors' files do."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"preset": value}
        if not isinstance(value, dict):
            return value
        given = {key: item for key, item in cast(dict[str, Any], value).items() if item is not None}
        preset = given.get("preset", "weak")
        # An unknown preset is refused by its own field, with the allowed ones.
        return {**PRESETS.get(preset, {}), **given} if isinstance(preset, str) else given

    @model_validator(mode="after")
    def _ordered(self) -> "AugmentConfig":
        for name, low, high in (
            ("crop", self.crop_min, self.crop_max),
            ("contrast", self.contrast_min, self.contrast_max),
        ):
            if low > high:
                raise ValueError(f"{name}_min={low} is above {name}_max={high}; set both")
        if self.mixup_probability + self.cutmix_probability > 1:
            raise ValueError(
                f"mixup_probability={self.mixup_probability} and cutmix_probability={self.cutmix_probability} "
                "exceed 1 together; a picture is mixed one way or the other"
            )
        return self
