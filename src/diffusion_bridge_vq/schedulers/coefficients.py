"""Coefficients of the bridge at any timesteps, on any device."""

import math
from typing import Any

import torch

from .bridge_settings import is_whole


class BridgeCoefficients:
    """
    Base of [`OUBridgeScheduler`]: alpha-bar, and what follows from it, as numbers that multiply samples.

    A timestep on the host gives a number, and those on a device a tensor there, so that nothing waits for the device.
    """

    config: Any
    _abar: torch.Tensor  # (T + 1,) float64: alpha-bar at paper time t = 0..T; timestep i is found at i + 1, -1 at 0
    _on_device: dict[tuple[str, torch.device], torch.Tensor]

    @property
    def stationary_std(self) -> float:
        """s = eta / sqrt(2 theta), the standard deviation of the law at the noisy end."""
        return self.config.eta / math.sqrt(2 * self.config.theta)

    def signal_to_noise(self, timesteps: torch.Tensor) -> torch.Tensor:
        """
        abar_t / (s^2 (1 - abar_t)): the ratio for unit-variance latents, in the shape of `timesteps`, float64 (float32
        where the device has no float64).
        """
        self._check_timesteps(timesteps, lowest=0, tensor=True)
        abar = self._table("abar", self._abar, timesteps.device)[timesteps.long() + 1]
        return abar / (self.stationary_std**2 * (1 - abar))

    def _bridge_coefficients(
        self, timestep: torch.Tensor | int, prev_timestep: torch.Tensor | int, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        abar_t, abar_s = self._alpha_bar(timestep, sample), self._alpha_bar(prev_timestep, sample)
        a = abar_t / abar_s
        c_original = abar_s.sqrt() * (1 - a) / (1 - abar_t)
        c_sample = a.sqrt() * (1 - abar_s) / (1 - abar_t)
        std = self.stationary_std * ((1 - abar_s) * (1 - a) / (1 - abar_t)).sqrt()
        return c_original, c_sample, std

    def _vp_coefficients(
        self, timestep: torch.Tensor | int, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """sqrt(abar') and sqrt(1 - abar'): signal and noise in x_t."""
        abar = self._alpha_bar(timestep, sample)
        m = (abar + self.stationary_std**2 * (1 - abar)).sqrt()
        dtype = wide_dtype(sample.dtype)
        return (abar.sqrt() / m).to(dtype), (self.stationary_std * (1 - abar).sqrt() / m).to(dtype)

    def _scale(self, timestep: torch.Tensor | int, sample: torch.Tensor) -> torch.Tensor:
        """m_t = sqrt(abar_t + s^2 (1 - abar_t))."""
        abar = self._alpha_bar(timestep, sample)
        return (abar + self.stationary_std**2 * (1 - abar)).sqrt().to(wide_dtype(sample.dtype))

    def _alpha_bar(self, timesteps: torch.Tensor | int, sample: torch.Tensor) -> torch.Tensor:
        """
        abar at the timesteps, float64: a number for one timestep on the host, else (B, 1, ...), like `sample`.
        """
        self._check_timesteps(timesteps, lowest=-1)
        if isinstance(timesteps, torch.Tensor) and timesteps.numel() not in (1, sample.shape[0]):
            raise ValueError(
                f"timesteps must be one for all {sample.shape[0]} samples or one for each, got {timesteps.numel()}."
            )
        if isinstance(timesteps, torch.Tensor) and (timesteps.ndim > 0 or timesteps.device.type != "cpu"):
            # reshaped first: an index without dimensions would be fetched from the device
            abar = self._table("abar", self._abar, sample.device)[timesteps.to(sample.device).reshape(-1).long() + 1]
            return abar.reshape(-1, *[1] * (sample.ndim - 1))
        return self._abar[int(timesteps) + 1]

    def _z_star(self, sample: torch.Tensor) -> torch.Tensor | float:
        """z*, a number or (1, d, 1, ...), like `sample`."""
        z_star = self.config.z_star
        if not isinstance(z_star, (list, tuple)):
            return float(z_star)
        if sample.ndim < 2 or sample.shape[1] != len(z_star):
            raise ValueError(
                f"`z_star` has {len(z_star)} values, one per channel, but the sample has shape {tuple(sample.shape)}."
            )
        table = self._table("z_star", torch.tensor(z_star, dtype=torch.float64), sample.device)
        return table.to(wide_dtype(sample.dtype)).reshape(1, -1, *[1] * (sample.ndim - 2))

    def _table(self, name: str, table: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The table on `device`, copied there once, so that a training step never waits for the host."""
        key = (name, device)
        if key not in self._on_device:
            self._on_device[key] = table.to(device, torch.float32 if device.type == "mps" else torch.float64)
        return self._on_device[key]

    def _check_timesteps(self, timesteps: torch.Tensor | int, lowest: int, tensor: bool = False) -> None:
        """Values on a device aren't looked at: that would wait for it. With `tensor` a number isn't enough."""
        if isinstance(timesteps, torch.Tensor):
            if timesteps.is_floating_point() or timesteps.is_complex() or timesteps.dtype == torch.bool:
                raise ValueError(f"timesteps must be whole numbers, got {timesteps.dtype}.")
            if timesteps.device.type != "cpu" or timesteps.numel() == 0:
                return
            low, high = int(timesteps.min()), int(timesteps.max())
        elif is_whole(timesteps) and not tensor:
            low = high = int(timesteps)
        else:
            form = "a tensor of whole numbers" if tensor else "whole numbers"
            raise ValueError(f"timesteps must be {form}, got {timesteps!r}.")
        if low < lowest or high >= len(self._abar) - 1:
            raise ValueError(
                f"timesteps must lie in {lowest}..{len(self._abar) - 2}, got {low if low == high else (low, high)}."
            )


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def widen(sample: torch.Tensor) -> torch.Tensor:
    """`sample` in float32 at least."""
    return sample.to(wide_dtype(sample.dtype))
