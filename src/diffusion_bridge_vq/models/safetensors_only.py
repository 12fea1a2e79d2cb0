"""Weights from the Hub without pickles."""

import os
from typing import Any


class SafetensorsFromHubMixin:
    """Before diffusers' ModelMixin among a class's bases: from the Hub it reads safetensors only."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """As ModelMixin's, but a pickle, which can run code, is not taken from the Hub in place of safetensors."""
        if not os.path.isdir(pretrained_model_name_or_path):
            kwargs["use_safetensors"] = True
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
