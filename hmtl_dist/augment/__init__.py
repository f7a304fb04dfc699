"""Augmentation: geometry in the loader's workers, colours on the device, every parameter drawn from a counter.

Geometry (crop, rotation, flip, resize) is one resampling a picture; the rest runs batched. Each parameter of each
sample is a pure function of (seed, epoch, position). Mixing blends what has been augmented. `mixing` and `photometric`
need torch and are imported by those who use them: the data-loader processes, which need `geometry` alone, do without.
"""

from hmtl_dist.augment.config import PRESETS, AugmentConfig
from hmtl_dist.augment.geometry import GeometricTransform, LabelGeometry

__all__ = ["PRESETS", "AugmentConfig", "GeometricTransform", "LabelGeometry"]
