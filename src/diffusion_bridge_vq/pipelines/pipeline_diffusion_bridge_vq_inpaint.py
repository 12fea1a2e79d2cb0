"""Conditional generation: keep the known part of an image, draw the rest (appendix 7)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import ImagePipelineOutput
from diffusers.image_processor import PipelineImageInput

from ..models import bridge_start_latents
from ..sampling.arguments import check_count, check_number
from ..sampling.chain import inpaint_latents
from ..sampling.steppers import Solver, Spacing
from .bridge import BridgePipeline, StepCallback, check_drawn
from .class_labels import ClassLabels
from .image_inputs import read_images, read_masks


class DiffusionBridgeVQInpaintPipeline(BridgePipeline):
    r"""
    Complete images with a diffusion bridge VQ-VAE, given their known part (appendix 7 of Cohen et al., ICML 2022).

    Example:

    ```py
    >>> from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline

    >>> pipe = DiffusionBridgeVQInpaintPipeline.from_pretrained("outputs/demo/pipeline")
    >>> images = pipe(image, mask_image, num_completions=4).images  # white in `mask_image` is drawn anew
    ```

    Args:
        vqvae ([`GumbelVQModel`]): the autoencoder.
        unet (`UNet2DModel`): the denoiser.
        scheduler ([`OUBridgeScheduler`]): the bridge, or a stock scheduler made from it.
        id2label (`dict[int, str]`, *optional*): names of the classes. Folders saved by
            [`DiffusionBridgeVQPipeline`] load here too.
        default_guidance_scale (`float`, *optional*): guidance scale of calls that give none.
        default_num_inference_steps (`int`, *optional*): is not used here, where the default is 50: it is meant for
            solvers without noise.
        label_words (`bool`, *optional*), condition (`str`, *optional*), label_examples (`dict[int, str]`, *optional*):
            see [`DiffusionBridgeVQPipeline`].

    Raises:
        ValueError: the U-Net's channels don't fit the codebook.
    """

    model_cpu_offload_seq = "vqvae->unet->vqvae"

    @torch.no_grad()
    def __call__(
        self,
        image: PipelineImageInput,
        mask_image: PipelineImageInput,
        num_inference_steps: int = 50,
        num_completions: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        composite_strength: float = 0.0,
        jump_length: int = 10,
        jump_n_sample: int = 1,
        latents: torch.Tensor | None = None,
        class_labels: ClassLabels = None,
        guidance_scale: float | None = None,
        solver: Solver | None = None,
        timestep_spacing: Spacing | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        condition: PipelineImageInput | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Complete images.

        A latent position is known if all the pixels of its patch are. What `image` has at hidden pixels is never
        looked at: they are gray to the encoder, which sees more than a patch for each latent.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): B images of the model's size:
                PIL in any mode of up to 16 bits, which is converted as for training (upright, transparent pixels
                white, [`to_eight_bits`]), numpy (H, W, C) or (B, H, W, C), tensors (C, H, W) or (B, C, H, W); floats
                in [0, 1] or uint8.
            mask_image (the same types): white (1, or 255 of uint8 and PIL) where pixels are hidden and to be drawn,
                black (0) or transparent where they are known; one for all images or one each. Numpy (H, W), (H, W, 1)
                or (B, H, W, 1), tensors (H, W), (1, H, W) or (B, 1, H, W).
            num_inference_steps (`int`, *optional*, defaults to 50): steps of the reverse chain, 1 to
                `num_train_timesteps`.
            num_completions (`int`, *optional*, defaults to 1): independent completions of each image; those of one
                image are neighbors in the output.
            generator (`torch.Generator` or a list with one per completion, *optional*): makes them repeatable.
            output_type (`str`, *optional*, defaults to `"pil"`): "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W)
                in [0, 1], or "latent", which is z_0 (B, d, h, w) before quantization.
            return_dict (`bool`, *optional*, defaults to `True`): return an `ImagePipelineOutput` or a tuple.
            composite_strength (`float`, *optional*, defaults to 0.0): weight of `image` at known pixels of the result,
                in [0, 1]: 0 is all decoder (reconstruction, without seams), 1 keeps known pixels as they were given.
            jump_length (`int`, *optional*, defaults to 10), jump_n_sample (`int`, *optional*, defaults to 1):
                resampling, see [`inpaint_latents`]; `jump_n_sample` times the network calls.
            latents (`torch.Tensor`, *optional*): standard normal noise to start from, (B num_completions, d, h, w).
            class_labels (`torch.Tensor`, `list` of `int` or `str`, `int` or `str`, *optional*): numbers or names of
                classes (`pipe.id2label`), one per image or one for all. Without them no class is asked for.
            guidance_scale (`float`, *optional*): 1 is no guidance; larger follows the class more closely. With
                `class_labels` it defaults to the pipeline's `default_guidance_scale`, or 1.
            solver (`str`, *optional*), timestep_spacing (`str`, *optional*): see [`sample_latents`]. The default is
                the paper's "ancestral", other than in [`DiffusionBridgeVQPipeline`]: its noise lets what is drawn
                agree with what is known, where "dpmsolver++" and "ddim" follow the conditional law less closely.
            callback_on_step_end (`Callable`, *optional*): called as callback(pipe, step, timestep, kwargs) after each
                step; `latents` in the dict it returns are used. They are what the scheduler works in: z_t with an
                [`OUBridgeScheduler`], `to_latents(pipe.scheduler, latents)` with a stock scheduler. After
                `pipe._interrupt = True` no step follows, and the images are of what is drawn so far.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*, defaults to `["latents"]`): names in that
                `kwargs`, from `_callback_tensor_inputs`.
            condition (`PIL.Image`, `np.ndarray`, `torch.Tensor` or a list of these, *optional*): one per image or one
                for all, see [`DiffusionBridgeVQPipeline`].

        Returns:
            `ImagePipelineOutput` or `tuple`: `.images`, B num_completions of them.

        Raises:
            ValueError: images of another size than the model's (they aren't resized), with other channels or values
                outside [0, 1]; a mask of another size or number, an empty one, one with other values than black and
                white; a number outside its range; an autoencoder in training mode; and what
                [`DiffusionBridgeVQPipeline`] raises.
        """
        if self.vqvae.training:  # its normalizer would learn from these images
            raise ValueError("`vqvae` is in training mode: call `pipe.vqvae.eval()` before.")
        check_count("num_completions", num_completions)
        check_number("composite_strength", composite_strength, 0, 1)
        if composite_strength and output_type == "latent":
            raise ValueError("`composite_strength` mixes pixels; with `output_type='latent'` leave it at 0.")
        pixels = read_images(image, "image", self.vqvae.config.in_channels, *self._image_size())
        hidden = self.read_mask(mask_image, len(pixels))
        total = len(pixels) * num_completions
        self._check_call(total, generator, output_type, callback_on_step_end_tensor_inputs)
        unet = self._show(self._read_condition(condition), len(pixels), num_completions)
        device = self._execution_device
        labels, guidance_scale = self._read_classes(class_labels, guidance_scale, len(pixels))

        pixels, hidden = pixels.to(device) * 2 - 1, hidden.to(device)
        visible = pixels.masked_fill(hidden, 0.0).to(self.vqvae.dtype)
        known_latents = self.vqvae.encode(visible).latents.to(self.unet.dtype)
        known_latents = bridge_start_latents(self.unet, self.vqvae.quantize, known_latents)
        unknown = F.max_pool2d(hidden.float(), self.vqvae.downsampling_factor) > 0  # (B, 1, h, w)
        z_0 = inpaint_latents(
            unet,
            self.scheduler,
            known_latents.repeat_interleave(num_completions, dim=0),
            unknown.repeat_interleave(num_completions, dim=0),
            num_inference_steps,
            generator=generator,
            latents=latents,
            class_labels=None if labels is None else labels.repeat_interleave(num_completions, dim=0),
            guidance_scale=guidance_scale,
            solver=solver,
            timestep_spacing=timestep_spacing,
            jump_length=jump_length,
            jump_n_sample=jump_n_sample,
            callback=self._step_callback(callback_on_step_end, callback_on_step_end_tensor_inputs),
            progress_bar=self._steps,
        )
        check_drawn(z_0)
        if output_type == "latent":
            images: Any = z_0
        else:
            decoded = self._decode(z_0).clamp(-1, 1)
            weight = (composite_strength * ~hidden).repeat_interleave(num_completions, dim=0)
            decoded = torch.lerp(decoded, pixels.repeat_interleave(num_completions, dim=0), weight)
            images = self.image_processor.postprocess(decoded, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def read_mask(self, mask_image: PipelineImageInput, num_images: int) -> torch.Tensor:
        """`mask_image` as the call takes it -> (num_images, 1, H, W) bool on the CPU, True where hidden."""
        return read_masks(mask_image, num_images, *self._image_size())

    def _image_size(self) -> tuple[int, int]:
        height, width = self._latent_size()
        return height * self.vqvae.downsampling_factor, width * self.vqvae.downsampling_factor
