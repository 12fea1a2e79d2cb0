"""How near each image is to its original."""

import torch
import torch.nn.functional as F

from .arguments import check_tensor

SSIM_WINDOW = 11  # pixels

# Images whose local moments are held at a time.
_SSIM_IMAGES = 256


def psnr(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """
    Peak signal-to-noise ratio of each image, -10 log10 of the mean squared error over channels and pixels.

    Args:
        images (`torch.Tensor`), reference (`torch.Tensor`): (B, C, H, W) float in [0, 1].

    Returns:
        `torch.Tensor`: (B,) float64, in dB; infinite for equal images.

    Raises:
        TypeError: no tensors.
        ValueError: no images, shapes that differ or aren't (B, C, H, W), no floats, or values outside [0, 1].
    """
    x, y = _check_pair(images, reference)
    return -10 * (x - y).square().mean(dim=(1, 2, 3)).log10()


def ssim(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """
    Structural similarity of each image (Wang et al. 2004, eq. 13), mean over channels and positions.

    Local moments are weighted by a Gaussian of standard deviation 1.5 on 11x11 pixels, at the positions where it fits
    into the image; K_1 = 0.01, K_2 = 0.03, L = 1. On color images each channel counts by itself.

    Args:
        images (`torch.Tensor`), reference (`torch.Tensor`): (B, C, H, W) float in [0, 1], sides of at least 11.

    Returns:
        `torch.Tensor`: (B,) float64 in [-1, 1]; 1 for equal images.

    Raises:
        TypeError, ValueError: what [`psnr`] raises, or images smaller than the window.
    """
    x, y = _check_pair(images, reference)
    if min(x.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs sides of at least {SSIM_WINDOW} pixels, got {tuple(x.shape[2:])}.")
    return torch.cat([_ssim(*block) for block in zip(x.split(_SSIM_IMAGES), y.split(_SSIM_IMAGES), strict=True)])


def _ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=x.device) - SSIM_WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()

    def local_mean(values: torch.Tensor) -> torch.Tensor:
        rows = F.conv2d(values.flatten(0, 1)[:, None], window.reshape(1, 1, -1, 1))
        return F.conv2d(rows, window.reshape(1, 1, 1, -1))

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.reshape(len(x), -1).mean(dim=1)


def _check_pair(images: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in float64."""
    for name, values in (("images", images), ("reference", reference)):
        check_tensor(name, values, "(B, C, H, W)", (3, 4))  # which of them has three, the next error says
    if images.ndim != 4 or images.shape != reference.shape:
        raise ValueError(
            f"`images` and `reference` must have one shape (B, C, H, W), got {tuple(images.shape)} and "
            f"{tuple(reference.shape)}."
        )
    for name, values in (("images", images), ("reference", reference)):
        if not values.is_floating_point() or not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(f"`{name}` must be floats in [0, 1].")
    return images.double(), reference.double()
