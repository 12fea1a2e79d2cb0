"""`dbvq VERB ...`, or `python -m diffusion_bridge_vq VERB ...`: the training scripts without a clone."""

import sys

from . import __version__

_KINDS = {
    "train-vqvae": ("VQConfig", "Train encoder, decoder and codebook (stage 1)."),
    "train-prior": ("PriorConfig", "Train a diffusion prior on the latents of a frozen autoencoder (stage 2)."),
    "train-pixelcnn": ("PixelCNNConfig", "Train a PixelCNN on the codes of a frozen autoencoder (the baseline)."),
    "train-e2e": ("E2EConfig", "Train encoder, decoder, codebook and diffusion prior together (Algorithm 1)."),
}


def main() -> None:
    """Run the verb that the command line names."""
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb == "--version":
        print(__version__)
    elif verb in _KINDS:
        from . import training
        from .cli import train_command

        name, description = _KINDS[verb]
        sys.argv = [f"dbvq {verb}", *arguments]
        train_command(getattr(training, name), description, makes_pipeline=verb != "train-vqvae")
    else:
        width = max(map(len, _KINDS))
        text = "\n".join(f"  {kind:<{width}}  {description}" for kind, (_, description) in _KINDS.items())
        usage = f"usage: dbvq VERB [options]\n\n{text}\n\n`dbvq VERB --help` lists the options of a verb."
        if verb in ("-h", "--help"):
            print(usage)
        else:
            sys.exit(f"dbvq: error: there is no verb {verb!r}; choose from {', '.join(_KINDS)}")


if __name__ == "__main__":
    main()
