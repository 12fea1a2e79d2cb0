"""Generation with the baseline prior: PixelCNN -> codes -> pixels."""

from typing import Any, Literal

import torch
from diffusers import ImagePipelineOutput

from ..models import GumbelVQModel, PixelCNNPrior, check_num_codes
from ..models.network_sizes import count_classes
from .base import VQPipeline
from .class_labels import ClassLabels, check_id2label, count_images, read_class_labels, split_first_argument


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
        id2label (`dict[int, str]`, *optional*): a name for each class, so that calls take names.

    Raises:
        ValueError: the prior's number of codes isn't the codebook's, or names that don't fit its classes.
    """

    model_cpu_offload_seq = "prior->vqvae"

    def __init__(self, vqvae: GumbelVQModel, prior: PixelCNNPrior, id2label: dict[int, str] | None = None):
        check_num_codes(prior, vqvae)
        super().__init__(id2label=check_id2label(id2label, count_classes(prior)))
        self.register_modules(vqvae=vqvae, prior=prior)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | str | list[str] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        class_labels: ClassLabels = None,
        temperature: float = 1.0,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Generate images.

        Args:
            batch_size (`int`, *optional*): number of images; defaults to the number of `class_labels`, or 1. A text or
                a list of texts is taken for `class_labels`.
            generator (`torch.Generator` or a list with one per image, *optional*): makes the images repeatable.
            output_type (`str`, *optional*, defaults to `"pil"`): "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W)
                in [0, 1], or "latent", which is z_q (B, d, h, w), the vectors of the codes.
            return_dict (`bool`, *optional*, defaults to `True`): return an `ImagePipelineOutput` or a tuple.
            class_labels (`torch.Tensor`, `list` of `int` or `str`, `int` or `str`, *optional*): numbers or names of
                classes (`pipe.id2label`), one per image or one for all.
            temperature (`float`, *optional*, defaults to 1.0): > 0; 1 is the prior's own law, less is closer to the
                likeliest codes.

        Returns:
            `ImagePipelineOutput` or `tuple`: `.images`.

        Raises:
            ValueError: a number outside its range, an unknown output type, labels for a prior without classes.
        """
        batch_size, class_labels = split_first_argument(batch_size, class_labels)
        batch_size = count_images(batch_size, class_labels)
        self._check_output(batch_size, generator, output_type)
        num_classes, device = count_classes(self.prior), self._execution_device
        labels = read_class_labels(class_labels, batch_size, num_classes, self.id2label, device)
        codes = self.prior.generate(batch_size, generator, temperature, labels, progress_bar=self.progress_bar)
        if output_type == "latent":
            images: Any = self.vqvae.decode_codes(codes)
        else:
            images = self.image_processor.postprocess(self._decode_codes(codes), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
