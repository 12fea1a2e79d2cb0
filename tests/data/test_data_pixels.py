"""uint8 <-> [-1, 1]. What becomes of images of every mode is in test_data_images.py."""

import numpy as np
import torch

from diffusion_bridge_vq.data.pixels import to_bytes, to_pixels

ALL = torch.arange(256, dtype=torch.uint8)


def test_bytes_to_pixels():
    np.testing.assert_allclose(to_pixels(ALL).double().numpy(), np.linspace(-1, 1, 256), atol=1e-6, rtol=0)


def test_pixels_to_bytes():
    assert torch.equal(to_bytes(to_pixels(ALL)), ALL)
    between = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    nearest = (between[:, None] - torch.linspace(-1, 1, 256, dtype=torch.float64)).abs()
    chosen = to_bytes(between).long()[:, None]
    assert bool((nearest.gather(1, chosen)[:, 0] <= nearest.min(dim=1)[0] + 1e-12).all())
    assert to_bytes(torch.tensor([-7.0, -1.001, 1.001, 7.0])).tolist() == [0, 0, 255, 255]
