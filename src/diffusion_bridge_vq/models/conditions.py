"""
Conditions of a U-Net: classes by number, or several of them at once, such as the words of a name.

Both go through the table that diffusers' `UNet2DModel` has for classes. Its last row is the null class, which means
no condition. A number takes its row; a vector over the rows, such as a multi-hot one, takes their weighted sum.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

_MOST_NAMED = 10  # in messages


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
