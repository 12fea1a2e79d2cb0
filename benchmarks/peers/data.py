"""Images of a comparison, and what the frozen tokenizer makes of them."""

from collections.abc import Iterator
from functools import cached_property

import torch

from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.data.pixels import to_bytes, to_pixels
from diffusion_bridge_vq.models import GumbelVQModel
from diffusion_bridge_vq.training.presets import preset_values

from .settings import Setting

ENCODING_BATCH = 256


class Split:
    """
    Images and classes of one split.

    Attributes:
        images (`torch.Tensor`): uint8 (n, C, H, W).
        labels (`torch.Tensor`): (n,) int64.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels

    def with_mirrors(self) -> "Split":
        """Each image and its mirror image."""
        return Split(torch.cat([self.images, self.images.flip(-1)]), self.labels.repeat(2))


class Data:
    """
    The two splits of a data set with classes, and the frozen tokenizer.

    Args:
        setting ([`Setting`]): of the comparison.
        dataset (`str`): as `load_images` takes it.

    Attributes:
        train ([`Split`]), test ([`Split`]): as they are.
        training ([`Split`]): what rows are trained on: `train`, with mirror images if the preset mirrors images.

    Raises:
        ValueError: data without classes, or what `load_images` raises.
    """

    def __init__(self, setting: Setting, dataset: str):
        self.setting, self.dataset = setting, dataset
        preset = preset_values(setting.preset, "prior")
        self.resolution, self.channels = preset["resolution"], preset["channels"]
        sizes = {"resolution": self.resolution, "channels": self.channels}
        train, test = (load_images(dataset, split=split, **sizes) for split in ("train", "test"))
        for split in (train, test):
            if split.labels is None or split.class_names is None or len(split.class_names) < 2:
                raise ValueError(
                    f"{dataset} has no classes, and every row is class-conditional: put the images of each class into "
                    "a folder of their own (train/CLASS/IMAGE, test/CLASS/IMAGE)."
                )
        if train.class_names != test.class_names:
            raise ValueError(f"The splits of {dataset} have different classes: give both all of them.")
        self.class_names = train.class_names or []
        self.fingerprint = f"{train.fingerprint}-{test.fingerprint}"
        self.train, self.test = (
            Split(split.__getitems__(range(len(split))).tensors["images"], split.labels) for split in (train, test)
        )
        self.training = self.train.with_mirrors() if preset.get("random_flip") else self.train
        self._latents: dict[int, torch.Tensor] = {}
        self._codes: dict[int, torch.Tensor] = {}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def tokenizer(self) -> GumbelVQModel:
        return GumbelVQModel.from_pretrained(self.setting.checkpoint / "vqvae").requires_grad_(False).eval()

    @property
    def num_codes(self) -> int:
        return self.tokenizer.config.num_vq_embeddings

    @property
    def side(self) -> int:
        """Height and width of the tokenizer's maps."""
        return self.resolution // self.tokenizer.downsampling_factor

    def latents(self, split: Split) -> torch.Tensor:
        """z_e of the tokenizer, (n, d, h, w), computed once for each split."""
        if id(split) not in self._latents:
            self._latents[id(split)] = self.encode(split.images)
        return self._latents[id(split)]

    def codes(self, split: Split) -> torch.Tensor:
        """(n, h, w) int64, computed once for each split."""
        if id(split) not in self._codes:
            self._codes[id(split)] = self.tokenizer.encode_codes(self.latents(split))
        return self._codes[id(split)]

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images -> z_e."""
        return torch.cat([self.tokenizer.encode(to_pixels(part)).latents for part in images.split(ENCODING_BATCH)])

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """z_e, which is quantized -> uint8 images."""
        return self.decode_codes(self.tokenizer.encode_codes(latents))

    @torch.no_grad()
    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (n, h, w) -> uint8 images."""
        z_q = self.tokenizer.decode_codes(codes)
        return to_bytes(self.tokenizer.decode(z_q, force_not_quantize=True).sample)

    def class_cycle(self, count: int) -> torch.Tensor:
        """The classes of `count` samples: all in turn."""
        return torch.arange(count) % self.num_classes


def batches(count: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Rows of full batches, for ever, in a new order each time; a smaller set is one batch."""
    size = min(batch_size, count)
    while True:
        order = torch.randperm(count)
        yield from order[: count - count % size].split(size)
