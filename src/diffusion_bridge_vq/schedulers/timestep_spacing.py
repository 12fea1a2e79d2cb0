"""At which noise levels the steps of a reverse chain lie."""

import numpy as np

# Half log-SNR (of unit-variance latents) that "logsnr" spacing starts from at the lowest: 0.6 % of z_0 are left there,
# and a cosine schedule has many levels below. diffusers recommends the same number as `lambda_min_clipped`.
_LOWEST_LOG_SNR = -5.1


def place_timesteps(
    n: int, spacing: str, steps_offset: int, log_snr: np.ndarray, lambda_max_clipped: float
) -> np.ndarray:
    """
    n descending timesteps (n,) of T, see `OUBridgeScheduler.set_timesteps`.

    Args:
        n (`int`): 1..T.
        spacing (`str`): "linspace", "leading" and "trailing" as in `DDPMScheduler`; "logsnr" takes the nearest to even
            half log-SNRs, pushed apart where levels are too few.
        steps_offset (`int`): added to the "leading" ones.
        log_snr (`np.ndarray`): (T,), half the log-SNR of unit-variance latents, falling.
        lambda_max_clipped (`float`): the half log-SNR that "logsnr" ends at.
    """
    num_train = len(log_snr)
    if spacing == "linspace":
        return np.linspace(0, num_train - 1, n).round()[::-1].astype(np.int64)
    if spacing == "leading":
        return (np.arange(n) * (num_train // n))[::-1].astype(np.int64) + steps_offset
    if spacing == "trailing":
        return np.round(num_train - np.arange(n) * (num_train / n)).astype(np.int64) - 1
    first, last = np.clip((_LOWEST_LOG_SNR, lambda_max_clipped), log_snr[-1], log_snr[0])
    wanted = np.linspace(first, last, n)
    nearest = np.abs(log_snr - wanted[:, None]).argmin(axis=1)
    i = np.arange(n)
    return np.minimum.accumulate(np.maximum(nearest, n - 1 - i) + i) - i
