"""What a run writes for people: numbers, pictures, settings; in its folder and to the trackers."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.image_processor import VaeImageProcessor

from ...grids import image_grid
from ...privacy import public_settings
from ...run_folder import RunFolder
from ..config import RunConfig


class RunLog:
    """
    config.json, metrics.jsonl and PNG grids in the run's folder, and the same for Accelerate's trackers.

    Args:
        config (`RunConfig`): of the run.
        accelerator (`Accelerator`): writes on its main process only.
        resumed_at (`int`, *optional*, defaults to 0): lines of metrics.jsonl from later steps are dropped: the run
            makes them again.
        id2label (`dict[int, str]`, *optional*): names of the classes that the run learns.
        label_examples (`list[str]`, *optional*): labels of its data, where classes are words.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        resumed_at: int = 0,
        id2label: dict[int, str] | None = None,
        label_examples: list[str] | None = None,
    ):
        self.folder, self.accelerator = RunFolder(config.output_dir), accelerator
        self._images_per_step = config.batch_size * config.gradient_accumulation_steps * accelerator.num_processes
        self._seconds = 0.0  # of training, over all starts
        if accelerator.is_main_process:
            machine = {"device": _name(accelerator.device), "processes": accelerator.num_processes}
            machine |= {"torch": torch.__version__}
            classes: dict[str, Any] = {"id2label": id2label, "label_examples": label_examples}
            classes = {name: value for name, value in classes.items() if value is not None}
            self.folder.write_config({"kind": config.kind} | config.to_json() | classes | {"machine": machine})
            self._drop_after(resumed_at)
        if config.report_to != "none":
            public = public_settings(config.to_json())
            settings = {k: v if isinstance(v, (int, float)) else str(v) for k, v in public.items()}
            accelerator.init_trackers("diffusion_bridge_vq", config=settings)
        self._started, self._logged = time.perf_counter(), resumed_at

    def speed(self, done: int) -> dict[str, float]:
        """
        At optimizer step `done`: images per second of all processes since the last call, and seconds in all, over all
        starts of the run.
        """
        now = time.perf_counter()
        rate = self._images_per_step * (done - self._logged) / (now - self._started)
        self._seconds += now - self._started
        self._started, self._logged = now, done
        return {"train/images_per_second": rate, "train/seconds": self._seconds}

    def write(self, values: Mapping[str, torch.Tensor | float], done: int) -> dict[str, float]:
        """Numbers of step `done`; scalar tensors are read in one transfer. Returns all as floats."""
        tensors = {k: v.detach().float() for k, v in values.items() if isinstance(v, torch.Tensor)}
        read = torch.stack(list(tensors.values())).tolist() if tensors else []
        record: dict[str, float] = {**values, **dict(zip(tensors, read, strict=True))}  # type: ignore[dict-item]
        self.accelerator.log(record, step=done)
        if self.accelerator.is_main_process:
            self.folder.append_metrics({"step": done} | {k: float(f"{v:.7g}") for k, v in record.items()})
        return record

    def save_grid(self, name: str, pixels: torch.Tensor, done: int) -> None:
        """(n, C, H, W) in [-1, 1] -> name-STEP.png, eight a row."""
        processor = VaeImageProcessor(do_resize=False)
        grid = image_grid(processor.postprocess(pixels.float(), output_type="pil"), columns=8)
        grid.save(self.folder.grid(name, done))
        picture = np.asarray(grid.convert("RGB"))
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: picture[None]}, step=done, dataformats="NHWC")
            elif tracker.name == "trackio":  # Accelerate's tracker passes no images on
                import trackio

                tracker.log({name: trackio.Image(picture)}, step=done)
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: picture[None]}, step=done)

    def _drop_after(self, step: int) -> None:
        kept = [record for record in self.folder.read_metrics() if record["step"] <= step]
        self._seconds = next((r["train/seconds"] for r in reversed(kept) if "train/seconds" in r), 0.0)
        if self.folder.metrics.exists():
            self.folder.replace_metrics(kept)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
