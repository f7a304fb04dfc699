"""Augmentation: geometry in the loader's workers, colours on the device, every parameter drawn from a counter.

Geometry (crop, rotation, flip, resize) is one resampling a picture; the rest runs batched. Each parameter of each
sample is a pure function of (seed, epoch, position).
"""

from hmtl_dist.augment.config import PRESETS, AugmentConfig
from hmtl_dist.augment.geometry import GeometricTransform
from hmtl_dist.augment.photometric import cutout, photometric

__all__ = ["PRESETS", "AugmentConfig", "GeometricTransform", "cutout", "photometric"]
