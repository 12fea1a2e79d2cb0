"""What the server of warm_processes.py imports, so that its processes have it."""

import gc

import diffusion_bridge_vq

for name in diffusion_bridge_vq.__all__:
    getattr(diffusion_bridge_vq, name)  # they are imported when they are needed first
gc.freeze()  # stays, and is shared
