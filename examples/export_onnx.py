"""Write a saved pipeline as ONNX graphs (denoiser, quantizer, decoder) with the scheduler's config beside them."""

import argparse
from pathlib import Path

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.onnx_export import export_onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("pipeline", help="folder of a saved pipeline, or its id on the Hub")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/onnx"))
    args = parser.parse_args()
    try:
        paths = export_onnx(DiffusionBridgeVQPipeline.from_pretrained(args.pipeline), args.output_dir)
    except (ImportError, ValueError, OSError) as error:
        parser.error(str(error))
    print(f"Written: {', '.join(str(path) for path in paths)}")


if __name__ == "__main__":
    main()
