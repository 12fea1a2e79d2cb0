"""The masks of the paper's conditional figures."""

import torch

from .arguments import check_choice, check_count

MASKS = ("center", "top-left", "left-half")


def paper_mask(name: str, height: int, width: int) -> torch.Tensor:
    """
    What is hidden on a map of latents (Figures 6, 7 and 17).

    Args:
        name (`str`): "center" and "top-left" hide a square there, 9 of 21 positions a side as in the paper (in
            proportion on other maps); "left-half" is the half that is given: the right one is hidden.
        height, width (`int`): of the map.

    Returns:
        `torch.Tensor`: (h, w) bool, True where hidden.

    Raises:
        TypeError: no whole numbers.
        ValueError: an unknown name, or an empty map.
    """
    check_choice("name", name, MASKS)
    check_count("height", height)
    check_count("width", width)
    hidden = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = (max(1, round(side * 9 / 21)) for side in (height, width))
    if name == "center":
        top, left = (height - rows) // 2, (width - columns) // 2
        hidden[top : top + rows, left : left + columns] = True
    elif name == "top-left":
        hidden[:rows, :columns] = True
    else:
        hidden[:, width // 2 :] = True
    return hidden
