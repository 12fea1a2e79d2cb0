"""What the numbers of the page and of its API may be. The page shows these limits, and errors name them."""

import math
from dataclasses import dataclass
from typing import Any

MAX_SEED = 2_000_000_000  # image i is drawn from seed + i, and torch takes more than that


@dataclass(frozen=True)
class Limit:
    """One number: the name of its field on the page, and its bounds."""

    label: str
    minimum: int
    maximum: int
    whole: bool = True

    def check(self, name: str, value: Any) -> Any:
        """
        `value`, as an int where it must be whole.

        Raises:
            ValueError: it is no number, not whole or out of bounds.
        """
        kind = "a whole number" if self.whole else "a number"
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not self.minimum <= value <= self.maximum or (self.whole and value != int(value)):
            raise ValueError(
                f"{self.label} (`{name}`) must be {kind} from {self.minimum} to {self.maximum}, got {value!r}."
            )
        return int(value) if self.whole else float(value)


class Limits:
    """The limits of one model's page."""

    def __init__(self, most_steps: int):
        self.by_name = {
            "num_images": Limit("Number of pictures", 1, 64),
            "num_completions": Limit("Number of completions", 1, 16),
            "seed": Limit("Seed", 0, MAX_SEED),
            "num_inference_steps": Limit("Steps", 1, most_steps),
            "guidance_scale": Limit("Guidance", 1, 10, whole=False),
            "jump_n_sample": Limit("Resampling", 1, 10),
        }

    def check(self, **values: Any) -> list[Any]:
        """The values, checked, in their order."""
        return [self.by_name[name].check(name, value) for name, value in values.items()]
