"""
The baseline prior that the paper compares with: a gated PixelCNN over code maps (van den Oord et al. 2016,
"Conditional image generation with PixelCNN decoders").
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, VQModel
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .arguments import Integer, Number, OrNone, Rule, Sides, check_arguments
from .bounded_loading import SafeLoadingMixin
from .inputs import check_generator, check_is_tensor
from .masks import expand_mask
from .network_sizes import latent_sides
from .noise import exponential_noise

_PRIOR_RULES: dict[str, Rule] = {
    "num_codes": Integer(),
    "width": Integer(),
    "num_layers": Integer(),
    "kernel_size": Integer(3),
    "sample_size": Sides(),
    "num_class_embeds": OrNone(Integer()),
    "dropout": Number(0.0, 1.0, without_high=True),
}


_CALL_RULES: dict[str, Rule] = {"batch_size": Integer(), "temperature": Number(0.0, without_low=True)}


@dataclass
class PixelCNNOutput(BaseOutput):
    """`logits` (`torch.Tensor`): (B, K, h, w), of each code given those before it in raster order."""

    logits: torch.Tensor


class PixelCNNPrior(SafeLoadingMixin, ModelMixin, ConfigMixin):
    r"""
    Gated PixelCNN: p(codes) = prod_p p(k_p | codes before p in raster order), row by row from the top left.

    Two stacks of convolutions, so that no position before p stays unseen: the vertical one reads the rows above, the
    horizontal one the row to the left and, at every layer, the vertical one. Activations are tanh(a) * sigmoid(b),
    and the horizontal stack is residual. Mask A of the first layer, which hides the position itself, is a shift of
    its input by one row (vertical) or one position (horizontal); then it has no weights that are never used, and all
    layers are alike (mask B).

    15 layers of width 512 have 91.5M weights at K = 256; with those that lie under mask A, which other
    implementations keep and multiply by zero, they are 95.7M (the paper: 95.8M).

    Args:
        num_codes (`int`, *optional*, defaults to 256): K.
        width (`int`, *optional*, defaults to 512): channels of both stacks.
        num_layers (`int`, *optional*, defaults to 15): gated layers; each sees one row and one column further than the
            one before.
        kernel_size (`int`, *optional*, defaults to 7): side of the first layer's window, odd, at least 3. The windows
            of the others are 3.
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to 8): h and w of the maps that `generate` draws.
        num_class_embeds (`int`, *optional*): classes, the last being the null class; None is unconditional.
        dropout (`float`, *optional*, defaults to 0.0): of the gated activations of both stacks, in [0, 1).

    Raises:
        ValueError: a number outside its range.
    """

    @register_to_config
    def __init__(
        self,
        num_codes: int = 256,
        width: int = 512,
        num_layers: int = 15,
        kernel_size: int = 7,
        sample_size: int | tuple[int, int] = 8,
        num_class_embeds: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_arguments("PixelCNNPrior", self.config, _PRIOR_RULES)
        if kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` of PixelCNNPrior must be odd, got {kernel_size}.")
        if num_class_embeds == 1:
            raise ValueError(
                "`num_class_embeds` counts the classes and the null class, at least 2, got 1; leave it out without "
                "classes."
            )
        self.embedding = nn.Embedding(num_codes, width)
        # The first layer reaches one row (or position) less far: the one that its input is shifted by.
        windows = itertools.chain([(kernel_size // 2, kernel_size)], itertools.repeat((2, 3), num_layers - 1))
        self.layers = nn.ModuleList(_GatedLayer(width, *window, num_class_embeds, dropout) for window in windows)
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, num_codes, 1))

    def forward(
        self, codes: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> PixelCNNOutput | tuple[torch.Tensor]:
        """
        Codes (B, h, w) int64 in 0..K-1, of any size, and optional classes (B,) -> `.logits` (B, K, h, w).

        Without labels a class-conditional network gets the null class.

        Raises:
            ValueError: codes of another shape or type, or (on the CPU, where looking costs nothing) out of range;
                labels for a network without classes, or other than one per map.
        """
        self._check_codes(codes)
        layers = self._conditioned_layers(class_labels, len(codes), codes.device)
        embedded = self._embed(codes)  # (B, width, h, w)
        vertical, horizontal = F.pad(embedded, (0, 0, 1, -1)), F.pad(embedded, (1, -1, 0, 0))  # mask A
        for layer, bias in layers:
            vertical, link = layer.step_down(F.pad(vertical, (*layer.margins, layer.reach - 1, 0)), bias)
            horizontal = layer.step_right(F.pad(horizontal, (layer.reach - 1, 0, 0, 0)), horizontal, link, bias)
        logits = self.head(horizontal)
        return PixelCNNOutput(logits=logits) if return_dict else (logits,)

    def log_prob(self, codes: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """
        log p of each code given those before it, in nats: codes (B, h, w) -> (B, h, w), at least float32.

        Their sum over a map is its log-likelihood, exactly. Arguments and errors as in `forward`.
        """
        logits = self(codes, class_labels, return_dict=False)[0]
        return -F.cross_entropy(_at_least_float32(logits), codes, reduction="none")

    @apply_forward_hook
    @torch.no_grad()
    def generate(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float = 1.0,
        class_labels: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        progress_bar: Callable[[Iterable], Iterable] = iter,
    ) -> torch.Tensor:
        """
        Draw maps of codes in raster order, from p^(1 / temperature) at each position.

        The whole map costs about one `forward`: the vertical stack is computed once per row and the horizontal one
        once per position, from the few columns that its windows still need. With `codes` and `mask` the known codes
        stay, and each drawn one follows p(k | all codes before it); known codes *after* it have no influence, which
        is a PixelCNN's way of completing a map and not the conditional law. A position's noise doesn't depend on what
        is known.

        Args:
            batch_size (`int`, *optional*, defaults to 1): B.
            generator (`torch.Generator` or a list with one per map, *optional*): source of all noise.
            temperature (`float`, *optional*, defaults to 1.0): > 0; 1 is the model's own law, less is closer to the
                likeliest code.
            class_labels (`torch.Tensor`, *optional*): (B,); the null class if left out.
            codes (`torch.Tensor`, *optional*): (B, h, w), of any size; values at unknown positions are ignored.
            mask (`torch.Tensor`, *optional*): True or 1 where codes are unknown and drawn, False or 0 where they are
                known; broadcasts against `codes`, e.g. (h, w).
            progress_bar (`Callable`, *optional*, defaults to `iter`): wraps the iterable over rows, e.g. `tqdm`.

        Returns:
            `torch.Tensor`: codes (B, h, w), int64.

        Raises:
            ValueError: a number outside its range; codes without mask or the reverse, or of shapes that don't fit; a
                mask that isn't binary; a wrong number of generators; and what `forward` raises.
        """
        check_arguments("generate", {"batch_size": batch_size, "temperature": temperature}, _CALL_RULES)
        check_generator(generator)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"Got {len(generator)} generators for a batch of {batch_size}; give one per map or one.")
        codes, unknown = self._known(batch_size, codes, mask)
        layers = self._conditioned_layers(class_labels, batch_size, codes.device)
        height, width = codes.shape[1:]
        drawn = unknown.any(dim=0).tolist()  # read once, so that the loop doesn't wait for the device
        num_rows = max((i + 1 for i in range(height) if any(drawn[i])), default=0)  # nothing depends on later rows

        nothing = torch.zeros_like(self._embed(codes[:, :1]))  # (B, width, 1, w): what is outside the map
        above = [nothing.repeat(1, 1, layer.reach, 1) for layer, _ in layers]
        for i in progress_bar(range(num_rows)):
            noise = exponential_noise((batch_size, width, self.config.num_codes), generator, codes.device)
            vertical, links = self._embed(codes[:, i - 1 : i]) if i else nothing, []
            for index, (layer, bias) in enumerate(layers):
                above[index] = torch.cat([above[index][:, :, 1:], vertical], dim=2)
                vertical, link = layer.step_down(F.pad(above[index], layer.margins), bias)
                links.append(link)
            num_columns = max((j + 1 for j in range(width) if drawn[i][j]), default=0)
            left = [nothing[..., :1].repeat(1, 1, 1, layer.reach) for layer, _ in layers]
            for j in range(num_columns):
                horizontal = self._embed(codes[:, i : i + 1, j - 1 : j]) if j else nothing[..., :1]
                for index, (layer, bias) in enumerate(layers):
                    left[index] = torch.cat([left[index][..., 1:], horizontal], dim=3)
                    horizontal = layer.step_right(left[index], horizontal, links[index][..., j : j + 1], bias)
                if drawn[i][j]:
                    # Gumbel-max: argmax of log p / temperature - log(exponential noise)
                    logits = _at_least_float32(self.head(horizontal)[..., 0, 0]) / temperature
                    chosen = (logits - noise[:, j].log()).argmax(dim=1)
                    codes[:, i, j] = torch.where(unknown[:, i, j], chosen, codes[:, i, j])
        return codes

    # -------------------------------------------------------------------------------------------------- internals

    def _embed(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, h, w) -> (B, width, h, w)."""
        return self.embedding(codes).movedim(-1, 1)

    def _conditioned_layers(
        self, class_labels: torch.Tensor | None, batch_size: int, device: torch.device
    ) -> list[tuple["_GatedLayer", torch.Tensor | float]]:
        """The layers, each with what the class adds to its gates: (B, 2 width, 1, 1); 0 without classes."""
        layers = [cast(_GatedLayer, layer) for layer in self.layers]
        num_embeds = self.config.num_class_embeds
        if num_embeds is None:
            if class_labels is not None:
                raise ValueError("This prior has no classes: leave out `class_labels`.")
            return [(layer, 0.0) for layer in layers]
        if class_labels is None:
            class_labels = torch.full((batch_size,), num_embeds - 1, device=device)
        check_is_tensor("class_labels", class_labels)
        if class_labels.shape != (batch_size,) or class_labels.dtype not in (torch.long, torch.int):
            raise ValueError(
                f"`class_labels` must be {batch_size} integers, one per map, got shape {tuple(class_labels.shape)} of "
                f"type {class_labels.dtype}."
            )
        _check_range("class_labels", class_labels, num_embeds)
        class_labels = class_labels.to(device)
        return [(layer, layer.classes(class_labels)[:, :, None, None]) for layer in layers]

    def _check_codes(self, codes: torch.Tensor) -> None:
        check_is_tensor("codes", codes)
        if codes.ndim != 3 or codes.numel() == 0 or codes.dtype != torch.long:
            raise ValueError(
                f"`codes` must be maps (B, h, w) of type int64, got {tuple(codes.shape)} of type {codes.dtype}."
            )
        _check_range("codes", codes, self.config.num_codes)

    def _known(
        self, batch_size: int, codes: torch.Tensor | None, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (B, h, w) with 0 where they are unknown, a copy, and where that is (B, h, w)."""
        if (codes is None) != (mask is None):
            raise ValueError("`codes` (what is known) and `mask` (True where to draw) go together: give both or none.")
        if codes is None or mask is None:
            height, width = latent_sides(self.config.sample_size)
            codes = torch.zeros(batch_size, height, width, dtype=torch.long, device=self.device)
            return codes, torch.ones_like(codes, dtype=torch.bool)
        check_is_tensor("codes", codes)
        if len(codes) != batch_size:
            raise ValueError(f"`codes` has {len(codes)} maps, but `batch_size` is {batch_size}; they must be equal.")
        unknown = expand_mask(mask, codes.shape, "codes").to(self.device)
        codes = codes.to(self.device).masked_fill(unknown, 0)
        self._check_codes(codes)
        return codes, unknown


class _GatedLayer(nn.Module):
    """
    One layer of both stacks (figure 2 of van den Oord et al. 2016). Its convolutions don't pad, so that the same two
    methods serve whole maps and, when sampling, one row or one position.

    Args:
        width (`int`): channels.
        reach (`int`): rows (vertical) or columns to the left (horizontal) of a window, the own one included.
        columns (`int`): of the vertical stack's window, odd.
        num_class_embeds (`int`, *optional*), dropout (`float`): see [`PixelCNNPrior`].
    """

    def __init__(self, width: int, reach: int, columns: int, num_class_embeds: int | None, dropout: float):
        super().__init__()
        self.reach, self.margins = reach, (columns // 2, columns // 2)
        self.vertical = nn.Conv2d(width, 2 * width, (reach, columns))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = nn.Conv2d(width, 2 * width, (1, reach))
        self.dropout = nn.Dropout(dropout)
        self.residual = nn.Conv2d(width, width, 1)
        if num_class_embeds is not None:
            self.classes = nn.Embedding(num_class_embeds, 2 * width)
            nn.init.zeros_(self.classes.weight)  # an unconditional network to start from

    def step_down(self, window: torch.Tensor, bias: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows above, padded -> the next layer's vertical features (B, width, h, w), and the link (B, 2 width, ..)."""
        features = self.vertical(window)
        return self.dropout(_gate(features + bias)), self.link(features)

    def step_right(
        self, window: torch.Tensor, skip: torch.Tensor, link: torch.Tensor, bias: torch.Tensor | float
    ) -> torch.Tensor:
        """Columns to the left, padded -> the next layer's horizontal features (B, width, h, w)."""
        return skip + self.residual(self.dropout(_gate(self.horizontal(window) + link + bias)))


def _gate(features: torch.Tensor) -> torch.Tensor:
    """(B, 2 width, ...) -> tanh(a) * sigmoid(b), (B, width, ...)."""
    a, b = features.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_range(name: str, values: torch.Tensor, stop: int) -> None:
    # on the CPU alone: elsewhere looking would wait for the device
    if values.device.type == "cpu" and not 0 <= int(values.min()) <= int(values.max()) < stop:
        raise ValueError(f"`{name}` must lie in 0..{stop - 1}, got {int(values.min())}..{int(values.max())}.")


def check_num_codes(prior: PixelCNNPrior, vqvae: VQModel) -> None:
    """
    Raises:
        ValueError: the prior is over another number of codes than the autoencoder has.
    """
    if prior.config.num_codes != vqvae.config.num_vq_embeddings:
        raise ValueError(
            f"The prior is over {prior.config.num_codes} codes, but the autoencoder has "
            f"{vqvae.config.num_vq_embeddings}; make it with num_codes={vqvae.config.num_vq_embeddings}."
        )
