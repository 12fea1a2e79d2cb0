"""
Conditions of a U-Net: classes by number, several of them at once, such as the words of a name, and images.

Classes go through the table that diffusers' `UNet2DModel` has for them. Its last row is the null class, which means
no condition. A number takes its row; a vector over the rows, such as a multi-hot one, takes their weighted sum.

Images are concatenated to the latents. Their last channel is 1 where there is a condition: all zeros are none, which
a gray image isn't.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_MOST_NAMED = 10  # in messages
_NUM_EXAMPLES = 8  # as many pictures as the page opens with


class MultiHotEmbedding(nn.Embedding):
    """An embedding that also takes vectors over its rows, (B, K) floating, and returns the sums that they weigh."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not input.is_floating_point():
            return super().forward(input)
        return input.to(self.weight.dtype) @ self.weight


def take_several_classes(unet: nn.Module) -> None:
    """Let a U-Net with a table of classes take vectors over them, in place. Its weights stay as they are."""
    table: Any = unet.class_embedding
    if type(table) is nn.Embedding:
        table.__class__ = MultiHotEmbedding  # the same weights, whatever holds them


def null_labels(class_labels: torch.Tensor, num_class_embeds: int) -> torch.Tensor:
    """No condition, in the form of these labels: numbers (B,), or vectors (B, K)."""
    if not class_labels.is_floating_point():
        return torch.full_like(class_labels, num_class_embeds - 1)
    null = torch.zeros_like(class_labels)
    null[:, -1] = 1
    return null


def split_words(text: str) -> list[str]:
    """The different words of a text, in lower case, in their order: "Person: red hair" -> person, red, hair."""
    return list(dict.fromkeys(re.findall(r"[^\W_]+", text.casefold())))


def find_vocabulary(texts: Iterable[str]) -> list[str]:
    """All words of these texts, sorted."""
    return sorted({word for text in texts for word in split_words(text)})


def choose_examples(texts: Sequence[str]) -> list[str]:
    """
    A few of these texts, as they are, from all over their order: those whose rarest word is in most texts, which a
    model learns best, and of these the shortest. No two have the same words.
    """
    words = {frozenset(split_words(text)): text for text in reversed(texts)}  # the first of those with the same words
    words.pop(frozenset(), None)
    found = [(own, text) for own, text in reversed(words.items())]
    counts = Counter(word for own, _ in found for word in own)
    used: Counter[str] = Counter()
    examples = []
    for i in range(count := min(_NUM_EXAMPLES, len(found))):
        own, text = min(
            found[i * len(found) // count : (i + 1) * len(found) // count],
            key=lambda each: (
                -min(counts[word] for word in each[0]),
                len(each[0]),
                sum(used[word] for word in each[0]),
            ),
        )
        examples.append(text)
        used.update(own)
    return examples


def words_to_labels(texts: Sequence[str], vocabulary: Sequence[str], skip_unknown: bool = False) -> torch.Tensor:
    """
    Multi-hot vectors of texts, (n, K + 1) float32; a text without a word is the null class.

    Args:
        texts (`Sequence[str]`): of any words.
        vocabulary (`Sequence[str]`): the K words, in the order of their numbers.
        skip_unknown (`bool`, *optional*, defaults to `False`): leave words out that aren't in it.

    Raises:
        ValueError: words that aren't in the vocabulary; names similar ones.
    """
    numbers = {word: number for number, word in enumerate(vocabulary)}
    labels = torch.zeros(len(texts), len(vocabulary) + 1)
    unknown: dict[str, None] = {}
    for row, text in enumerate(texts):
        words = split_words(text)
        unknown |= dict.fromkeys(word for word in words if word not in numbers)
        known = [numbers[word] for word in words if word in numbers]
        labels[row, known or [len(vocabulary)]] = 1
    if unknown and not skip_unknown:
        near = difflib.get_close_matches(next(iter(unknown)), vocabulary, n=3)
        suggestion = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"The model doesn't know {', '.join(map(repr, list(unknown)[:_MOST_NAMED]))}; it knows "
            f"{len(vocabulary)} words.{suggestion}"
        )
    return labels


def count_condition_channels(channels: int, side: int, latent_side: int) -> int:
    """
    Channels of [`condition_map`] for images (channels, side, side).

    Raises:
        ValueError: neither side is a multiple of the other.
    """
    if side % latent_side and latent_side % side:
        raise ValueError(
            f"A condition of {side} x {side} pixels doesn't fit latents of {latent_side} x {latent_side}: one must "
            "be a multiple of the other."
        )
    return channels * max(1, side // latent_side) ** 2 + 1


def condition_map(images: torch.Tensor, latent_side: int) -> torch.Tensor:
    """
    Images on the grid of the latents, with a last channel of ones: (B, C, s, s) -> (B, C f^2 + 1, h, h).

    Each f x f pixels, f = s / h, become channels of one position; smaller images are repeated.

    Args:
        images (`torch.Tensor`): conditions in [-1, 1].
        latent_side (`int`): h.

    Raises:
        ValueError: see [`count_condition_channels`].
    """
    count_condition_channels(images.shape[1], images.shape[-1], latent_side)
    if images.shape[-1] < latent_side:
        images = F.interpolate(images, size=(latent_side, latent_side), mode="nearest")
    folded = F.pixel_unshuffle(images, images.shape[-1] // latent_side)
    return torch.cat([folded, torch.ones_like(folded[:, :1])], dim=1)


@torch.no_grad()
def replace_condition(unet: Any, channels: int) -> None:
    """
    Give a trained U-Net an image condition of that many channels instead of its own, if it has one, in place. The new
    weights are 0: whatever the condition, it predicts what it predicted without any.

    Args:
        unet (`UNet2DModel`): its latents have `out_channels`, and its condition the other channels of its input.
        channels (`int`): of the new condition's map; 0 for none.
    """
    old, own = unet.conv_in.weight, unet.config.out_channels
    weight = old.new_zeros(old.shape[0], own + channels, *old.shape[2:])
    weight[:, :own] = old[:, :own]
    unet.conv_in.weight, unet.conv_in.in_channels = nn.Parameter(weight), own + channels
    unet.register_to_config(in_channels=own + channels)
