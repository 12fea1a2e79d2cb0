"""
The terms of the objective (lemma 3.1), as losses to be minimized. Each is a mean per coordinate.

The ELBO adds nats: L_rec over the D pixel values, L_t and L_t^reg over the N d latent coordinates. Here every term is
divided by N d, except that the squared error stays a mean over pixel values with a weight w in front. Then w is
for a Gaussian decoder of variance sigma^2 = D / (2 w T N d), with `weighting="elbo"`: the loss has the mean of L_t
over t where the ELBO has the sum, so everything else is divided by T, too. With the other weightings it is no bound.
"""

import torch
import torch.nn.functional as F

from ..choices import Regularization, Weighting
from ..models.inputs import check_same_shape, check_tensor
from ..models.quantizer import VectorQuantizer
from ..schedulers import OUBridgeScheduler


def prediction_target(
    scheduler: OUBridgeScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """
    What the network should return for add_noise(latents, noise, timesteps), by the scheduler's `prediction_type`.

    Raises:
        TypeError, ValueError: not a bridge, or tensors of another kind or shape; it is named.
    """
    _check_call(scheduler, timesteps)
    check_same_shape(latents=latents, noise=noise)
    if scheduler.config.prediction_type == "epsilon":
        return noise
    if scheduler.config.prediction_type == "sample":
        return latents
    return scheduler.get_velocity(latents, noise, timesteps)


def prior_loss(
    scheduler: OUBridgeScheduler,
    model_output: torch.Tensor,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    weighting: Weighting = "simple",
    min_snr_gamma: float = 5.0,
) -> torch.Tensor:
    """
    -L_t (eq. 4) with one t per sample, mean over the batch; see [`prior_loss_of_each`].

    Returns:
        `torch.Tensor`: scalar, mean over batch and coordinates.
    """
    return prior_loss_of_each(scheduler, model_output, latents, noise, timesteps, weighting, min_snr_gamma).mean()


def prior_loss_of_each(
    scheduler: OUBridgeScheduler,
    model_output: torch.Tensor,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    weighting: Weighting = "simple",
    min_snr_gamma: float = 5.0,
) -> torch.Tensor:
    """
    -L_t (eq. 4) with one t per sample.

    With SNR = abar_t / (s^2 (1 - abar_t)), the error of any prediction fixes that of the noise:
    ||eps - eps_theta||^2 = SNR ||z_0 - z_theta||^2 = SNR / (1 + SNR) ||v - v_theta||^2. So "elbo" is eq. 4 whatever
    the network predicts. "simple" has weight 1 on the network's own output (Ho et al. 2020 for eps). "min_snr" has
    min(SNR, gamma) on the error of z_0 (Hang et al. 2023). "clamped_snr" has max(1, min(SNR, gamma)), with the lower
    end of Salimans and Ho (2022): for a z_0-network as much as "simple" at high noise, and more at low noise. For a
    network that predicts the noise it is 1 / SNR at high noise, without bound, so runs refuse that.

    Args:
        model_output (`torch.Tensor`): prediction at z_t, (B, d, ...).
        latents (`torch.Tensor`): z_0, (B, d, ...).
        noise (`torch.Tensor`): eps, (B, d, ...).
        timesteps (`torch.Tensor`): (B,), 0..T-1.
        weighting (`str`, *optional*, defaults to `"simple"`): "elbo", "simple", "min_snr" or "clamped_snr".
        min_snr_gamma (`float`, *optional*, defaults to 5.0): gamma of the last two.

    Returns:
        `torch.Tensor`: (B,), mean over coordinates.

    Raises:
        TypeError, ValueError: as [`prediction_target`], or another `weighting`.
    """
    check_same_shape(latents=latents, model_output=model_output)
    _check_call(scheduler, timesteps, len(latents))
    target = prediction_target(scheduler, latents, noise, timesteps)
    error = (model_output.float() - target.float()).square().flatten(1).mean(dim=1)  # (B,)
    if weighting == "simple":
        return error
    if weighting == "elbo":
        weight = scheduler.elbo_weight(timesteps)
    elif weighting in ("min_snr", "clamped_snr"):
        snr = scheduler.signal_to_noise(timesteps)
        # the error of z_0 over that of the network, which may be at SNR = 0 but for eps
        divisor = {"epsilon": snr, "sample": torch.ones_like(snr), "v_prediction": 1 + snr}
        least = 0.0 if weighting == "min_snr" else 1.0
        weight = snr.clamp(max=min_snr_gamma).clamp(min=least) / divisor[scheduler.config.prediction_type]
    else:
        raise ValueError(f"`weighting` must be elbo, simple, min_snr or clamped_snr, got {weighting!r}.")
    return weight.to(error.dtype) * error


def terminal_loss(scheduler: OUBridgeScheduler, latents: torch.Tensor) -> torch.Tensor:
    """-L_T per coordinate, for z_0 (B, d, ...); constant for a frozen encoder, see `OUBridgeScheduler.terminal_kl`."""
    _check_bridge(scheduler)
    return scheduler.terminal_kl(latents).mean()


def prior_temperature(scheduler: OUBridgeScheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """tau_t, linear from 10 at t = 0 to 0.1 at t = T (appendix 8); (B,) timesteps 0..T-1 (or -1) -> (B,) float32."""
    _check_call(scheduler, timesteps)
    t = (timesteps + 1).float() / len(scheduler)
    return 10.0 + (0.1 - 10.0) * t


def regularization_loss(
    scheduler: OUBridgeScheduler,
    quantizer: VectorQuantizer,
    noisy_latents: torch.Tensor,
    timesteps: torch.Tensor,
    form: Regularization = "gamma",
    temperature: float = 1.0,
) -> torch.Tensor:
    r"""
    -L_t^reg: KL between q = softmax_k(-||z - e_k||^2 / tau) and p = softmax_k(-||z - e_k||^2 / tau_t) at z = z_e^t.

    "kl" is eq. 5 in closed form. "gamma" is what appendix 8 keeps of it, gamma_t ||z_e^t - zhat||^2 with zhat ~ q and
    gamma_t = 1 / tau - 1 / tau_t: it pulls codes and latents together at small t and pushes them apart at large t. The
    dropped normalizers are not constant, so the two differ. "none" is 0.

    Args:
        noisy_latents (`torch.Tensor`): z_e^t, (B, d, ...).
        timesteps (`torch.Tensor`): (B,).
        temperature (`float`, *optional*, defaults to 1.0): tau.

    Returns:
        `torch.Tensor`: scalar per latent coordinate.

    Raises:
        TypeError, ValueError: not a bridge, tensors of another kind, or another `form`.
    """
    if not isinstance(quantizer, VectorQuantizer):
        raise TypeError(
            f"`quantizer` must be a VectorQuantizer, such as `vqvae.quantize`, got {type(quantizer).__name__}."
        )
    check_tensor("noisy_latents", noisy_latents)
    _check_call(scheduler, timesteps, len(noisy_latents))
    z = noisy_latents.float()
    if form == "none":
        return z.new_zeros(())
    tau_t = prior_temperature(scheduler, timesteps).reshape(-1, *[1] * (z.ndim - 2))  # (B, 1, ...) without channels
    if form == "gamma":
        code_vectors = quantizer.decode_codes(quantizer.sample_codes(z, temperature)).float()
        gamma = 1 / temperature - 1 / tau_t
        return (gamma * (z - code_vectors).square().sum(dim=1)).mean() / z.shape[1]
    if form == "kl":
        return categorical_kl(quantizer.logits(z), temperature, tau_t[..., None]).mean() / z.shape[1]
    raise ValueError(f"`form` must be gamma, kl or none, got {form!r}.")


def categorical_kl(
    logits: torch.Tensor, temperature: float | torch.Tensor, other_temperature: float | torch.Tensor
) -> torch.Tensor:
    """KL(softmax(logits / temperature) || softmax(logits / other_temperature)): (..., K) -> (...), in nats."""
    log_q = F.log_softmax(logits / temperature, dim=-1)
    log_p = F.log_softmax(logits / other_temperature, dim=-1)
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1)


def _check_call(scheduler: OUBridgeScheduler, timesteps: torch.Tensor, samples: int | None = None) -> None:
    _check_bridge(scheduler)
    check_tensor("timesteps", timesteps, integers=True)
    if samples is not None and timesteps.shape != (samples,):
        raise ValueError(f"`timesteps` must be ({samples},), one per sample, got shape {tuple(timesteps.shape)}.")


def _check_bridge(scheduler: OUBridgeScheduler) -> None:
    if not isinstance(scheduler, OUBridgeScheduler):
        raise TypeError(f"`scheduler` must be an OUBridgeScheduler, got {type(scheduler).__name__}.")
