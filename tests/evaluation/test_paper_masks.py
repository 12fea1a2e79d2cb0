"""The masks of the paper's conditional figures."""

import pytest

from diffusion_bridge_vq.evaluation.paper_masks import MASKS, paper_mask


def test_masks_on_the_papers_map():
    """21 x 21: a 9 x 9 square in the middle and at the top left; the left half given."""
    center, corner, half = (paper_mask(name, 21, 21) for name in MASKS)
    assert center.sum() == corner.sum() == 81
    assert center[6:15, 6:15].all() and corner[:9, :9].all()
    assert half.sum() == 21 * 11 and not half[:, :10].any()
    assert paper_mask("center", 4, 4).tolist() == [[False] * 4, *[[False, True, True, False]] * 2, [False] * 4]
    with pytest.raises(ValueError, match="'middle'"):
        paper_mask("middle", 4, 4)
