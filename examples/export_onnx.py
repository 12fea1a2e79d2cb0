"""Write a saved pipeline as ONNX graphs (denoiser, quantizer, decoder), with the scheduler's config."""

from diffusion_bridge_vq.commands.export_onnx import main

if __name__ == "__main__":
    main()
