"""Write a saved pipeline as ONNX graphs (denoiser, quantizer, decoder), with the scheduler's config."""

from ..cli import check_output_folder, errors_as_lines, local_path, new_parser, refuse_several_processes
from ..onnx_export import export_onnx
from ..pipelines import DiffusionBridgeVQPipeline


@errors_as_lines()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("pipeline", help="folder of a saved pipeline or of a run, or the pipeline's id on the Hub")
    parser.add_argument("--output-dir", type=local_path, default="outputs/onnx")
    args = parser.parse_args()
    refuse_several_processes(parser)
    check_output_folder(args.output_dir)
    paths = export_onnx(DiffusionBridgeVQPipeline.from_pretrained(args.pipeline), args.output_dir)
    print(f"Written: {', '.join(map(str, paths))}\nNext: run them with onnxruntime, as in docs/how-to/onnx.md")
