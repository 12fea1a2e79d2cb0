"""What a model makes of real images, and what it draws: the things that metrics measure."""

import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..data.images import short_hash
from ..data.pixels import to_bytes, to_pixels
from ..models import GumbelVQModel
from ..pipelines.base import VQPipeline
from .arguments import check_count, check_model
from .config import EvaluationConfig
from .fingerprints import fingerprint
from .priors import EvaluatedPrior, evaluated_prior
from .real_images import RealImages
from .sample_store import SampleStore


class ModelOutputs:
    """
    Codes and reconstructions of the test images, and samples. Each is made once, when it is first used; samples are
    stored on disk.

    Args:
        model (`str`): its name in the results; "bridge", "bridge-e2e" and "pixelcnn" have places in the tables.
        evaluated: a pipeline, or an autoencoder ([`GumbelVQModel`]) alone, on the device of `real`.
        real ([`RealImages`]): what it is compared with.
        store ([`SampleStore`]): where samples are stored.
        config ([`EvaluationConfig`]): `num_images` and `extractor` are those of `real`.
        batch_size (`int`, *optional*, defaults to 64): images per call of the networks.

    Attributes:
        prior ([`EvaluatedPrior`], *optional*): None for an autoencoder alone.
        weights (`str`): the model's fingerprint.

    Raises:
        TypeError: another kind of object than the one named above.
        ValueError: a guidance scale that the model can't use.
    """

    def __init__(
        self,
        model: str,
        evaluated: DiffusionPipeline | GumbelVQModel,
        real: RealImages,
        store: SampleStore,
        config: EvaluationConfig,
        batch_size: int = 64,
    ):
        check_model("evaluated", evaluated, (GumbelVQModel, VQPipeline))
        check_model("real", real, RealImages)
        check_model("config", config, EvaluationConfig)
        check_count("batch_size", batch_size)
        self.model, self.real, self.store, self.config, self.batch_size = model, real, store, config, batch_size
        self._prior: EvaluatedPrior | None = None
        if isinstance(evaluated, GumbelVQModel):
            self.vqvae: Any = evaluated.eval()
            self._components: tuple[Any, ...] = (evaluated,)
        else:
            self._prior = evaluated_prior(model, evaluated, config)
            self.vqvae, self._components = self._prior.vqvae, tuple(evaluated.components.values())

    @property
    def prior(self) -> EvaluatedPrior:
        assert self._prior is not None, "metrics of a prior name in `needs` what they need of it"
        return self._prior

    @property
    def sampling_facts(self) -> dict[str, Any]:
        """The settings that samples depend on."""
        return {} if self._prior is None else self._prior.sampling_facts

    @property
    def provides(self) -> frozenset[str]:
        """What metrics may need of this model."""
        labels = frozenset({"labels"} if self.real.test_labels is not None else ())
        return labels if self._prior is None else labels | self._prior.abilities

    @cached_property
    def weights(self) -> str:
        return fingerprint(*self._components)

    @cached_property
    def test_latents(self) -> torch.Tensor:
        """z_e of the test images, (n, d, h, w) on the CPU."""
        return self.encode(self.real.test)

    @cached_property
    def test_codes(self) -> torch.Tensor:
        return self.quantize(self.test_latents)

    @cached_property
    def reconstructions(self) -> torch.Tensor:
        """Of the test images, uint8 (n, C, H, W)."""
        return self.decode(self.test_codes)

    @cached_property
    def samples(self) -> torch.Tensor:
        """As many as there are test images, uint8 (n, C, H, W)."""
        return self.decode(self.sampled_codes(len(self.real.test)))

    @cached_property
    def sample_labels(self) -> torch.Tensor | None:
        """
        The classes that `samples` were drawn for, as numbers in `real.class_names`; None without classes.

        Raises:
            ValueError: the classes of the model aren't those of the data set.
        """
        labels = None if self._prior is None else self._prior.sample_labels(0, len(self.real.test))
        if labels is None:
            return None
        names, known = self.prior.class_names, self.real.class_names or []
        if names is None and self.prior.num_classes == len(known):
            return labels
        if names is None or set(names) - set(known):
            raise ValueError(
                f"{self.model} has the classes {', '.join(names or [])[:80] or self.prior.num_classes}, and the data "
                f"set {', '.join(known)[:80]}: give the data set that the model was trained on."
            )
        return torch.tensor([known.index(name) for name in names])[labels]

    def generator(self) -> torch.Generator:
        """A new one, with the seed of the settings."""
        return torch.Generator(self.real.device).manual_seed(self.config.seed)

    def batches(self, tensor: torch.Tensor) -> Iterator[torch.Tensor]:
        """On the device."""
        return (part.to(self.real.device) for part in tensor.split(self.batch_size))

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images -> z_e on the CPU."""
        return torch.cat([self.vqvae.encode(to_pixels(x)).latents.cpu() for x in self.batches(images)])

    @torch.no_grad()
    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        """z_e -> nearest codes (n, h, w) on the CPU."""
        return torch.cat([self.vqvae.encode_codes(z).cpu() for z in self.batches(latents)])

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes -> uint8 images on the CPU."""
        pixels = []
        for k in self.batches(codes):
            decoded = self.vqvae.decode(self.vqvae.decode_codes(k), force_not_quantize=True).sample
            pixels.append(to_bytes(decoded).cpu())
        return torch.cat(pixels)

    def sampled_codes(self, count: int) -> torch.Tensor:
        """
        The first `count` maps of codes, (count, h, w) on the CPU. They are drawn in whole batches, each of which is
        stored before the next is drawn. So the first ones are the same however many are asked for, by whatever metric
        and after any interruption.
        """
        own = (f"codes/{self.model}/", f"generator/{self.model}/")
        codes_name, generator_name = (prefix + self._draws_key for prefix in own)
        generator, shape = self.generator(), tuple(self.test_codes.shape[1:])
        before = self.store.draws(codes_name, generator_name, self._num_codes, shape)
        batches, stale = [], set()
        if before is not None:
            batches = [before[0]]
            try:
                generator.set_state(before[1])
            except (RuntimeError, TypeError) as error:  # of another size or type
                raise ValueError(self.store.is_foreign(generator_name, before[1])) from error
        else:  # draws with other settings, and their pictures
            names = self.store.read()
            stale = {name for name in names if name.startswith(own) or name.partition("/")[2] == self.model}
        while (drawn := sum(map(len, batches))) < count:
            labels = self.prior.sample_labels(drawn, self.batch_size)
            codes = self.prior.draw_codes(self.batch_size, generator, labels)
            batches.append(codes.to("cpu", self._code_dtype))
            self.store.update({codes_name: torch.cat(batches), generator_name: generator.get_state()}, stale)
        return torch.cat(batches)[:count].long()

    @property
    def _draws_key(self) -> str:
        """Fingerprint of all that draws depend on."""
        law = {"weights": self.weights, "seed": self.config.seed, **self.sampling_facts}
        law |= {"batch_size": self.batch_size, "device": self.real.device.type}
        return short_hash(json.dumps(law).encode())

    @property
    def _code_dtype(self) -> torch.dtype:
        """The smallest that holds every code."""
        dtypes = (torch.uint8, torch.int16, torch.int64)
        return next(d for d in dtypes if self._num_codes <= torch.iinfo(d).max + 1)

    @property
    def _num_codes(self) -> int:
        return self.vqvae.config.num_vq_embeddings
