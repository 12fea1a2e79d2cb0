"""
Measure saved pipelines (section 4 of the paper): results as JSON, tables, KL maps and sheets of samples. What
results.json holds of the same weights, images and settings isn't measured again, so an interrupted command continues
when it is run again.
"""

from diffusion_bridge_vq.commands.evaluate import main

if __name__ == "__main__":
    main()
