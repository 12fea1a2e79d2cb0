"""What a model makes of real images, and what it draws: the things that metrics measure."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ..data.images import short_hash
from ..data.pixels import to_bytes, to_pixels
from ..models import GumbelVQModel
from ..pipelines.base import VQPipeline
from ..sampling import generators_for
from .arguments import check_count, check_model
from .config import EvaluationConfig
from .fingerprints import fingerprint, fingerprint_tensors
from .priors import EvaluatedPrior, evaluated_prior
from .processes import Processes
from .real_images import RealImages
from .sample_store import SampleStore

_MOST_NAMES = 5  # in messages


class ModelOutputs:
    """
    Codes and reconstructions of the test images, and samples. Each is made once, when it is first used, by the
    processes of `real` together; samples are stored on disk. Sample i of a model that draws from images is drawn from
    test image i. Other samples of a model with classes have each class as often as the training images have it, or all
    in turn if the data set has no labels or none of these classes.

    Args:
        model (`str`): its name in the results; "bridge", "bridge-e2e" and "pixelcnn" have places in the tables.
        evaluated: a pipeline, or an autoencoder ([`GumbelVQModel`]) alone, on the device of `real`.
        real ([`RealImages`]): what it is compared with.
        store ([`SampleStore`]): where samples are stored.
        config ([`EvaluationConfig`]): `num_images` and `extractor` are those of `real`.
        batch_size (`int`, *optional*, defaults to 64): images per call of the networks, by each process.

    Attributes:
        processes ([`Processes`]): of `real`.
        prior ([`EvaluatedPrior`], *optional*): None for an autoencoder alone.
        weights (`str`): the model's fingerprint.

    Raises:
        TypeError: another kind of object than the one named above.
        ValueError: a guidance scale that the model can't use, or a data set without the images or classes that the
            model draws from.
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
        self.processes: Processes = real.processes
        self._prior: EvaluatedPrior | None = None
        self._spread = torch.empty(0, dtype=torch.long)
        if isinstance(evaluated, GumbelVQModel):
            self.vqvae: Any = evaluated.eval()
            self._components: tuple[Any, ...] = (evaluated,)
        else:
            self._prior = evaluated_prior(model, evaluated, config)
            self.vqvae, self._components = self._prior.vqvae, tuple(evaluated.components.values())
            self._check_conditions()

    @property
    def prior(self) -> EvaluatedPrior:
        assert self._prior is not None, "metrics of a prior name in `needs` what they need of it"
        return self._prior

    @property
    def sampling_facts(self) -> dict[str, Any]:
        """The settings that samples depend on."""
        if self._prior is None:
            return {}
        facts = self._prior.sampling_facts
        if self.conditions is None and self._prior.draws_classes and len(set(self._class_counts)) > 1:
            return facts | {"classes": f"as in training, {short_hash(json.dumps(self._class_counts).encode())}"}
        return facts  # with classes in turn

    @property
    def provides(self) -> frozenset[str]:
        """What metrics may need of this model."""
        labels = frozenset({"labels"} if self.real.test_labels is not None else ())
        return labels if self._prior is None else labels | self._prior.abilities

    @cached_property
    def conditions(self) -> torch.Tensor | None:
        """What samples are drawn from, one for each test image, uint8 (n, C, s, s); None if from nothing."""
        condition = None if self._prior is None else self._prior.image_condition
        if condition is None or condition.column is not None:
            return None if condition is None else self.real.test_conditions
        parts = self.real.test.split(self.batch_size)
        return torch.cat([to_bytes(condition.derive(to_pixels(images))) for images in parts])

    @cached_property
    def condition_facts(self) -> dict[str, Any]:
        """What samples and likelihoods are given; nothing for a model that draws from no images."""
        if self.conditions is None:
            return {}
        condition = self.prior.image_condition
        assert condition is not None
        return {"condition": condition.name, "condition_images": fingerprint_tensors(self.conditions)}

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
        The classes that `samples` were drawn for, or of the images that they were drawn from, as numbers in
        `real.class_names`; None without classes.

        Raises:
            ValueError: the classes of the model aren't those of the data set.
        """
        if self.conditions is not None:
            return self.real.test_labels
        if self._prior is None or not self._prior.draws_classes:
            return None
        labels = self._drawn_classes(len(self.real.test))
        names, known = self.prior.class_names, self.real.class_names or []
        if names is None and self.prior.num_classes == len(known):
            return labels
        if names is None or set(names) - set(known):
            raise ValueError(
                f"{self.model} has the classes {', '.join(names or [])[:80] or self.prior.num_classes}, and the data "
                f"set {', '.join(known)[:80]}: give the data set that the model was trained on."
            )
        return torch.tensor([known.index(name) for name in names])[labels]

    def generators(self, rows: slice) -> list[torch.Generator]:
        """A new one for each of these images, by the seed of the settings."""
        return generators_for(self.config.seed, range(rows.start, rows.stop))

    def batches(self, tensor: torch.Tensor) -> Iterator[torch.Tensor]:
        """On the device."""
        return (part.to(self.real.device) for part in tensor.split(self.batch_size))

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images -> z_e on the CPU."""
        return self._shared(lambda x: self.vqvae.encode(to_pixels(x)).latents, images)

    @torch.no_grad()
    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        """z_e -> nearest codes (n, h, w) on the CPU."""
        return self._shared(self.vqvae.encode_codes, latents)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes -> uint8 images on the CPU."""

        def pixels(k: torch.Tensor) -> torch.Tensor:
            return to_bytes(self.vqvae.decode(self.vqvae.decode_codes(k), force_not_quantize=True).sample)

        return self._shared(pixels, codes)

    def _shared(self, work: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
        """`work` on all batches, each process on its share of them; on the CPU."""
        return self.processes.rows(
            lambda rows: torch.cat([work(part).cpu() for part in self.batches(tensor[rows])]), len(tensor)
        )

    def sampled_codes(self, count: int) -> torch.Tensor:
        """
        The first `count` maps of codes, (count, h, w) on the CPU. Each has a generator of its own, and what is drawn
        is stored batch by batch. So the first ones are the same however many are asked for, by whatever metric, after
        any interruption and on any number of processes, but for rounding.
        """
        own = f"codes/{self.model}/"
        name, shape = own + self._draws_key, tuple(self.test_codes.shape[1:])
        drawn = self.processes.decide(lambda: self.store.draws(name, self._num_codes, shape))
        stale: set[str] = set()
        if drawn is None:  # draws with other settings, and their pictures
            others = (own, f"generator/{self.model}/")
            names = self.processes.decide(self.store.read_names)
            stale = {each for each in names if each.startswith(others) or each.partition("/")[2] == self.model}
            drawn = torch.empty((0, *shape), dtype=self._code_dtype)
        while len(drawn) < count:
            start, stop = len(drawn), min(len(drawn) + self.batch_size * self.processes.count, count)
            codes = self.processes.rows(partial(self._draw, start), stop - start)
            drawn = torch.cat([drawn, codes.to(self._code_dtype)])
            self.processes.decide(partial(self.store.update, {name: drawn}, stale))
        return drawn[:count].long()

    def _draw(self, start: int, rows: slice) -> torch.Tensor:
        """Codes of the samples `start` + `rows`."""
        numbers = slice(start + rows.start, start + rows.stop)
        if self.conditions is None:
            labels = self._drawn_classes(numbers.stop)[numbers].tolist() if self.prior.draws_classes else None
            return self.prior.draw_codes(self.generators(numbers), labels)
        given = self.conditions[numbers]
        return self.prior.draw_codes(self.generators(numbers), self._classes_of_images(numbers), given)

    def _drawn_classes(self, count: int) -> torch.Tensor:
        """Classes of the first samples of a model with classes, (count,) int64 in the model's numbers."""
        if len(self._spread) < count:  # asked for batch by batch
            self._spread = spread_classes(self._class_counts, 2 * count)
        return self._spread[:count]

    @cached_property
    def _class_counts(self) -> list[int]:
        """Training images of each class of the model; 1 each if the data set has none of them, or no labels."""
        names, known, counts = self.prior.class_names, self.real.class_names, self.real.class_counts
        if known is None or counts is None:
            return [1] * self.prior.num_classes
        if names is not None:
            counts = [dict(zip(known, counts, strict=True)).get(name, 0) for name in names]
        return counts if len(counts) == self.prior.num_classes and any(counts) else [1] * self.prior.num_classes

    def _classes_of_images(self, numbers: slice) -> list[int | str] | None:
        """Of the test images that samples are drawn from, as the pipeline takes them; None for draws without."""
        labels, names = self.real.test_labels, self.real.class_names
        if not self.prior.num_classes or not self.config.guidance_scale or labels is None or names is None:
            return None
        own = labels[numbers].tolist()
        return own if self.prior.class_names is None else [names[label] for label in own]

    def _check_conditions(self) -> None:
        condition = self.prior.image_condition
        if condition is None:
            return
        if self.conditions is None:
            raise ValueError(
                f"{self.model} draws from images ({condition.name}): load the test images with `condition_column` "
                f"{condition.column!r}."
            )
        labels, names = self.real.test_labels, self.real.class_names
        if not self.prior.num_classes or not self.config.guidance_scale:
            return
        if labels is None or names is None:
            raise ValueError(
                f"{self.model} draws with classes, but the data set has none: give its `label_column`, or leave out "
                "`guidance_scale`."
            )
        unknown = self.prior.unknown_classes([names[number] for number in labels.unique().tolist()])
        other = f"doesn't know the classes {', '.join(unknown[:_MOST_NAMES])} of the test images"
        if self.prior.class_names is None:
            other = f"has {self.prior.num_classes} classes without names, and the data set {len(names)}"
        if unknown or (self.prior.class_names is None and self.prior.num_classes != len(names)):
            raise ValueError(
                f"{self.model} {other}: give the data set that the model was trained on, or leave out "
                "`guidance_scale`, to draw without classes."
            )

    @property
    def _draws_key(self) -> str:
        """Fingerprint of all that draws depend on."""
        law = {
            "weights": self.weights,
            "seed": self.config.seed,
            "generators": "own",
            **self.sampling_facts,
            **self.condition_facts,
        }
        return short_hash(json.dumps(law).encode())

    @property
    def _code_dtype(self) -> torch.dtype:
        """The smallest that holds every code."""
        dtypes = (torch.uint8, torch.int16, torch.int64)
        return next(d for d in dtypes if self._num_codes <= torch.iinfo(d).max + 1)

    @property
    def _num_codes(self) -> int:
        return self.vqvae.config.num_vq_embeddings


def spread_classes(counts: Sequence[int], number: int) -> torch.Tensor:
    """
    Classes in these proportions for the first `number` samples, (number,) int64: each next sample has the class that
    is furthest behind its share. Equal counts give the classes in turn.
    """
    shares, drawn = np.array(counts), np.zeros(len(counts), dtype=np.int64)
    classes = np.empty(number, dtype=np.int64)
    for i in range(number):
        classes[i] = np.argmax(shares * (i + 1) - shares.sum() * drawn)  # of equals the first, unlike torch's
        drawn[classes[i]] += 1
    return torch.from_numpy(classes)
