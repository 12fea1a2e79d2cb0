"""Classes of a pipeline's call: numbers or names -> one number for each image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..models.conditions import split_words, words_to_labels
from ..sampling.arguments import check_count, check_number

ClassLabels = torch.Tensor | np.ndarray | Sequence[int | str] | int | str | None
_MOST_NAMES = 20  # in messages


def check_id2label(id2label: Mapping[Any, str] | None, num_classes: int | None) -> dict[int, str] | None:
    """
    Class names by number; keys may be strings, as JSON has them.

    Raises:
        ValueError: a network without classes, other numbers than 0..num_classes-1, or names that are empty, not
            strings or given twice.
    """
    if id2label is None:
        return None
    if num_classes is None:
        raise ValueError("`id2label` names classes, but the network has none: leave `id2label` out.")
    if not isinstance(id2label, Mapping):
        raise ValueError(f"`id2label` must be a dict from class number to name, got {type(id2label).__name__}.")
    expected = {str(number): number for number in range(min(num_classes, len(id2label) + 1))}
    if {str(key) for key in id2label} != set(expected) or len(id2label) != num_classes:
        raise ValueError(
            f"`id2label` must name each of the classes 0..{num_classes - 1} once, got {len(id2label)} names for "
            f"{_list_some(map(str, id2label))}."
        )
    names = {expected[str(key)]: name for key, name in id2label.items()}
    for number, name in names.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"`id2label` must have a name for class {number}, got {name!r}.")
    if len(set(names.values())) < len(names):
        raise ValueError(f"`id2label` must have different names for all classes, got {_list_some(names.values())}.")
    return dict(sorted(names.items()))


def check_label_examples(examples: Any, words: Mapping[Any, str] | None) -> dict[int, str] | None:
    """
    Labels that show what a model can draw, whose classes are these words by number; None for another model. By number,
    as [`check_id2label`]: diffusers takes each list in model_index.json for a component.

    Raises:
        ValueError: examples for such a model, no dict of different texts, or a text without words or with unknown
            ones.
    """
    if examples is None:
        return None
    if words is None:
        raise ValueError("`label_examples` are texts for a model whose classes are words: leave them out.")
    texts = list(examples.values()) if isinstance(examples, Mapping) else []
    good = all(isinstance(text, str) and split_words(text) for text in texts)
    if not texts or not good or len(set(texts)) < len(texts):
        raise ValueError(
            "`label_examples` must be a dict from number to text, of different texts with words, got "
            f"{examples!r:.200}."
        )
    try:
        words_to_labels(texts, list(words.values()))
    except ValueError as error:
        raise ValueError(f"`label_examples` don't fit `id2label`: {error}") from error
    return dict(enumerate(texts))


def check_default_guidance_scale(value: float | None, num_classes: int | None, condition: str | None = None) -> None:
    """
    Raises:
        ValueError: not a finite number, or one for a network without classes and image condition.
    """
    if value is None:
        return
    if num_classes is None and condition is None:
        raise ValueError("`default_guidance_scale` needs classes, but the network has none: leave it out.")
    check_number("default_guidance_scale", value)


def split_first_argument(first: Any, class_labels: ClassLabels) -> tuple[int | None, ClassLabels]:
    """
    `batch_size` and `class_labels` of a call: a first argument that is a text, or a list of texts, is the second.

    Raises:
        ValueError: labels are given twice, or a list of something else than texts.
    """
    texts = [first] if isinstance(first, str) else first
    if not isinstance(texts, (list, tuple)):
        return first, class_labels
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"`batch_size` must be a whole number of at least 1, got {first!r}; numbers of classes are given by name, "
            "as `class_labels`."
        )
    if class_labels is not None:
        raise ValueError(f"Classes are given twice, as {first!r} and as `class_labels` {class_labels!r}: give one.")
    return None, first


def count_images(batch_size: int | None, class_labels: ClassLabels, num_conditions: int = 1) -> int:
    """
    `batch_size`, or the number of labels, or of conditions.

    Raises:
        ValueError: a batch size that isn't a whole number of at least 1.
    """
    if batch_size is None:
        return max(num_conditions, len(_to_list(class_labels)))
    check_count("batch_size", batch_size)
    return int(batch_size)


def read_words(class_labels: ClassLabels, num_images: int, id2label: Mapping[int, str] | None) -> torch.Tensor | None:
    """
    Texts, of whose words each is a class, as vectors over the classes (num_images, K + 1); None without any.

    Raises:
        ValueError: something else than texts or numbers of words, a text without words, unknown words, or as many as
            fit neither the images nor one for all.
    """
    if class_labels is None:
        return None
    names = list((id2label or {}).values())
    given = _to_list(class_labels)
    numbers = [one for one in given if not isinstance(one, str)]
    whole = all(isinstance(one, (int, np.integer)) and not isinstance(one, bool) for one in numbers)
    if not whole or not all(0 <= one < len(names) for one in numbers) or len(given) not in (1, num_images):
        raise ValueError(
            f"`class_labels` must be {num_images} texts or one, or numbers of words in 0..{len(names) - 1}, got "
            f"{len(given)}: {_list_some(map(repr, given))}."
        )
    if empty := [one for one in given if isinstance(one, str) and not split_words(one)]:
        raise ValueError(f"`class_labels` must have words, got {empty[0]!r}; leave them out to draw without any.")
    labels = words_to_labels([one if isinstance(one, str) else names[one] for one in given], names)
    return labels if len(labels) == num_images else labels.repeat(num_images, 1)


def find_label_ids(names: Sequence[str] | str, id2label: Mapping[int, str] | None) -> list[int]:
    """
    Class numbers of names.

    Raises:
        ValueError: no class of that name, or no names at all.
    """
    if id2label is None:
        raise ValueError(f"This pipeline has no class names, got {names!r}: give the numbers of the classes.")
    ids = {name: number for number, name in id2label.items()}
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if not isinstance(name, str) or name not in ids:
            raise ValueError(f"There is no class {name!r}; the classes are {_list_some(ids)}.")
    return [ids[name] for name in names]


def read_class_labels(
    class_labels: ClassLabels,
    num_images: int,
    num_classes: int | None,
    id2label: Mapping[int, str] | None,
    device: torch.device,
) -> torch.Tensor | None:
    """
    One label (int64) per image, the null class (number `num_classes`) if none is given; None without classes.

    Raises:
        ValueError: labels for a network without classes, as many as fit neither the images nor one for all, others
            than whole numbers and names, or numbers out of range.
    """
    if num_classes is None:
        if class_labels is not None:
            raise ValueError("This model has no classes: leave out `class_labels`.")
        return None
    if class_labels is None:
        return torch.full((num_images,), num_classes, device=device)
    given = _to_list(class_labels)
    labels = [find_label_ids(one, id2label)[0] if isinstance(one, str) else one for one in given]
    whole = all(isinstance(one, (int, np.integer)) and not isinstance(one, bool) for one in labels)
    if not whole or len(labels) not in (1, num_images):
        raise ValueError(
            f"`class_labels` must be {num_images} integers or one, or names of classes, got {len(given)}: "
            f"{_list_some(map(repr, given))}."
        )
    if not all(0 <= one < num_classes for one in labels):
        raise ValueError(f"`class_labels` must lie in 0..{num_classes - 1}, got {_list_some(map(str, labels))}.")
    labels = [int(one) for one in labels]
    return torch.tensor(labels if len(labels) == num_images else labels * num_images, device=device)


def _to_list(class_labels: ClassLabels) -> list[Any]:
    if class_labels is None:
        return []
    if isinstance(class_labels, (torch.Tensor, np.ndarray)):
        return class_labels.reshape(-1).tolist()
    if isinstance(class_labels, Sequence) and not isinstance(class_labels, str):
        # tensors of one element in a list, too
        return [one.item() if isinstance(one, torch.Tensor) and one.numel() == 1 else one for one in class_labels]
    return [class_labels]


def _list_some(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (", ".join(names[:_MOST_NAMES]) or "none") + more
