"""The toy of section 4.1: noisy walks on eight points of a circle. It uses the package, which does not use it."""
