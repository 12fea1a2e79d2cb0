"""`dbvq VERB ...`, or `python -m diffusion_bridge_vq VERB ...`: the scripts of examples/ without a clone."""

import importlib
import sys

from . import __version__

_VERBS = {
    "train-vqvae": "train encoder, decoder and codebook (stage 1)",
    "train-prior": "train a diffusion prior on the latents of a frozen autoencoder (stage 2)",
    "train-pixelcnn": "train a PixelCNN on the codes of a frozen autoencoder (the baseline)",
    "train-e2e": "train autoencoder and prior in one run",
    "draw-trajectories": "write trajectories of a trained bridge, to distill a student from",
    "distill": "train a student that draws in one to four steps",
    "fit-timesteps": "place few sampling steps where they lose least for one bridge",
    "encode-dataset": "write the latents or codes of a data set, to train priors on",
    "sample": "draw images",
    "inpaint": "complete images",
    "evaluate": "measure saved pipelines",
    "reproduce": "train and measure what the paper compares",
    "export-checkpoint": "write the pipeline of a checkpoint of a run",
    "export-onnx": "write ONNX graphs",
    "push-to-hub": "upload a run",
}


def main() -> None:
    """Run the verb that the command line names."""
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in _VERBS:
        sys.argv = [f"dbvq {verb}", *arguments]
        importlib.import_module(f".commands.{verb.replace('-', '_')}", __package__).main()
    elif verb == "--version":
        print(__version__)
    elif verb in ("-h", "--help"):
        width = max(map(len, _VERBS))
        text = "\n".join(f"  {name:<{width}}  {meaning}" for name, meaning in _VERBS.items())
        print(f"usage: dbvq VERB [options]\n\n{text}\n\n`dbvq VERB --help` lists the options of a verb.")
    else:
        sys.exit(f"dbvq: error: there is no verb {verb!r}; choose from {', '.join(_VERBS)}")


if __name__ == "__main__":
    main()
