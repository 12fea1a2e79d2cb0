"""Normalization of the latents, over the batches of all processes."""

import torch
from torch import nn

from .arguments import Integer, Number, Rule, check_arguments
from .distributed import is_distributed
from .inputs import check_tensor

_ARGUMENTS: dict[str, Rule] = {
    "num_channels": Integer(),
    "momentum": Number(low=0, high=1, without_low=True),
    "eps": Number(low=0, without_low=True),
}


class LatentNormalizer(nn.Module):
    """
    Brings every latent channel to mean 0 and variance 1: batch normalization without affine weights, in float32.

    In training the statistics are those of the batch over all processes, with gradient, so that latents can't be
    shrunk to make denoising easy. In eval mode and after `freeze()` they are the running ones. Both codebook and
    diffusion work on its output.

    Args:
        num_channels (`int`): d.
        momentum (`float`, *optional*, defaults to 0.05): weight of the new batch in the running statistics, in (0, 1].
            The first batches weigh equally, so that the statistics are good from the start.
        eps (`float`, *optional*, defaults to 1e-5): least variance that is divided by.

    Raises:
        ValueError: a number outside its range.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, num_channels: int, momentum: float = 0.05, eps: float = 1e-5):
        super().__init__()
        given = {"num_channels": num_channels, "momentum": momentum, "eps": eps}
        check_arguments("LatentNormalizer", given, _ARGUMENTS)
        self.momentum, self.eps = momentum, eps
        self.frozen = False
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        self.register_buffer("num_batches_tracked", torch.zeros(()))

    def freeze(self, frozen: bool = True) -> None:
        """Use and keep the running statistics also in training; `freeze(False)` takes it back."""
        self.frozen = frozen

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """
        Latents (B, d, ...) -> same shape and dtype.

        Raises:
            ValueError: an empty batch, or another number of channels.
        """
        check_tensor("z", z)
        if z.ndim < 2 or z.shape[1] != len(self.running_mean):
            raise ValueError(f"Latents must have shape (B, {len(self.running_mean)}, ...), got {tuple(z.shape)}.")
        rows = z.float()
        if self.training and not self.frozen:
            mean, var = self._batch_statistics(rows)
            with torch.no_grad():
                self.num_batches_tracked += 1
                weight = (1 / self.num_batches_tracked).clamp(min=self.momentum)
                for running, batch in ((self.running_mean, mean), (self.running_var, var)):
                    running.copy_(torch.lerp(running.float(), batch.detach(), weight.float()))
        else:
            mean, var = self.running_mean.float(), self.running_var.float()
        shape = (1, -1, *[1] * (z.ndim - 2))
        return ((rows - mean.reshape(shape)) * var.clamp(min=self.eps).rsqrt().reshape(shape)).to(z.dtype)

    @staticmethod
    def _batch_statistics(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        axes = [i for i in range(z.ndim) if i != 1]
        if not is_distributed():
            var, mean = torch.var_mean(z, dim=axes, correction=0)
            return mean, var
        from torch.distributed.nn.functional import all_reduce  # differentiable

        total, count = all_reduce(torch.cat([z.sum(axes), z.new_tensor([z.numel() / z.shape[1]])])).split(
            [z.shape[1], 1]
        )
        mean = total / count
        # Squares of centered values: E[z^2] - E[z]^2 would cancel where the mean is large against the deviation. The
        # variance doesn't depend on the mean to first order, so that it needs no gradient here.
        centered = z - mean.detach().reshape(1, -1, *[1] * (z.ndim - 2))
        return mean, all_reduce(centered.square().sum(axes)) / count
