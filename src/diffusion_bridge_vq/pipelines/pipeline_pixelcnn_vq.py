"""Generation with the baseline prior: PixelCNN -> codes -> pixels."""

from typing import Any, Literal

import torch
from diffusers import ImagePipelineOutput

from ..models import GumbelVQModel, PixelCNNPrior, check_num_codes
from ..sampling import check_count
from .base import VQPipeline


class PixelCNNVQPipeline(VQPipeline):
    r"""
    Generate images with a PixelCNN over the codes of a VQ-VAE, the paper's baseline (section 4.2).

    Example:

    ```py
    >>> from diffusion_bridge_vq import PixelCNNVQPipeline

    >>> pipe = PixelCNNVQPipeline.from_pretrained("outputs/pixelcnn/pipeline")
    >>> images = pipe(batch_size=16).images
    ```

    Args:
        vqvae ([`GumbelVQModel`]): the autoencoder.
        prior ([`PixelCNNPrior`]): the law of its codes; with `num_class_embeds` it is class-conditional, its last
            class being the null class.

    Raises:
        ValueError: the prior's number of codes isn't the codebook's.
    """

    model_cpu_offload_seq = "prior->vqvae"

    def __init__(self, vqvae: GumbelVQModel, prior: PixelCNNPrior):
        super().__init__()
        check_num_codes(prior, vqvae)
        self.register_modules(vqvae=vqvae, prior=prior)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        class_labels: torch.Tensor | list[int] | int | None = None,
        temperature: float = 1.0,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Generate images.

        Args:
            batch_size (`int`): number of images.
            generator (`torch.Generator` or a list with one per image, *optional*): makes the images repeatable.
            output_type (`str`): "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W) in [0, 1], or "latent", which is
                z_q (B, d, h, w), the vectors of the codes.
            return_dict (`bool`): return an `ImagePipelineOutput` or a tuple.
            class_labels (`torch.Tensor`, `list[int]` or `int`, *optional*): one class per image, or one for all.
            temperature (`float`): > 0; 1 is the prior's own law, less is closer to the likeliest codes.

        Returns:
            `ImagePipelineOutput` or `tuple`: `.images`.

        Raises:
            ValueError: a number outside its range, an unknown output type, labels for a prior without classes.
        """
        check_count("batch_size", batch_size)
        self._check_output(batch_size, generator, output_type)
        labels = self._read_class_labels(
            class_labels, self.prior.config.num_class_embeds, batch_size, self._execution_device
        )
        codes = self.prior.generate(batch_size, generator, temperature, labels, progress_bar=self.progress_bar)
        if output_type == "latent":
            images: Any = self.vqvae.decode_codes(codes)
        else:
            images = self.image_processor.postprocess(self._decode_codes(codes), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
