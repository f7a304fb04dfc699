"""The sheet that shows how a pretext task is solved."""

import numpy as np
import torch

from hmtl_dist.train.evaluate import CAPTION, MARGIN, NUM_PICTURES, PICTURE, sheet

SIDE = 48
ENLARGED = 3 * SIDE
"""The least multiple of SIDE that a picture may have."""


def test_pictures_stand_enlarged_under_their_captions() -> None:
    assert ENLARGED - SIDE < PICTURE <= ENLARGED
    samples = NUM_PICTURES + 2
    black, red = torch.zeros(samples, 3, SIDE, SIDE), torch.zeros(samples, 3, SIDE, SIDE)
    red[:, 0] = 1.5  # as a network may restore it
    drawn = sheet({"picture": black, "restored": red})
    step = ENLARGED + MARGIN
    assert drawn.shape == (CAPTION + NUM_PICTURES * step, 2 * step + MARGIN, 3)
    for column, colour in enumerate(((0, 0, 0), (255, 0, 0))):
        left = MARGIN + column * step
        assert (drawn[:CAPTION, left : left + ENLARGED] < 128).any()
        for row in range(NUM_PICTURES):
            top = CAPTION + row * step
            assert np.array_equal(
                drawn[top : top + ENLARGED, left : left + ENLARGED], np.full((ENLARGED, ENLARGED, 3), colour)
            )
