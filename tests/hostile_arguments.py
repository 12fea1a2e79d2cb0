"""Calls with one argument replaced by a value that makes no sense."""

import itertools
import math
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffusion_bridge_vq

PACKAGE = str(Path(diffusion_bridge_vq.__file__).parent)
EXPLAINED = re.compile("must|need|got|have|differ|fit")  # what is expected
HOSTILE = {
    "None": None,
    "text": "cat",
    "empty text": "",
    "bytes": b"\xff",
    "minus one": -1,
    "zero": 0,
    "fraction": 1.5,
    "true": True,
    "nan": math.nan,
    "infinity": math.inf,
    "huge": 2**70,
    "list": [],
    "list of None": [None],
    "dict": {},
    "object": object(),
    "numpy": np.ones((4, 3), np.float32),
    "no rows": torch.empty(0, 3),
    "scalar": torch.tensor(1.0),
    "vector": torch.ones(3),
    "wrong matrix": torch.ones(5, 7),
    "integers": torch.ones(4, 3, dtype=torch.long),
    "five dimensions": torch.ones(2, 2, 2, 2, 2),
    "NaN tensor": torch.full((4, 3), math.nan),
    "NaN images": torch.full((2, 1, 12, 12), math.nan),
    "complex": torch.ones(4, 3, dtype=torch.complex64),
    "huge codes": torch.full((2, 3), 2**40),
    "negative codes": torch.full((2, 3), -1),
}


def check_arguments(function: Callable[..., Any], good: Mapping[str, Any]) -> None:
    """The function takes `good`; with each argument replaced it works, or the package says what it expects."""
    function(**good)
    problems = []
    for argument, (kind, value) in itertools.product(good, HOSTILE.items()):
        try:
            function(**{**good, argument: value})
        except (ValueError, TypeError) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            if not (frame.filename.startswith(PACKAGE) and EXPLAINED.search(str(error))):
                problems.append(f"{argument} = {kind}: {error!r} in {frame.filename}:{frame.lineno}")
        except Exception as error:
            problems.append(f"{argument} = {kind}: {error!r}")
    assert not problems, "\n".join(problems)
