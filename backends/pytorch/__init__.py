"""The PyTorch backend: diffusers' and transformers' networks under our own forward, on CUDA or the CPU."""

import os

# Before torch is imported: two spinning OpenMP threads on two busy cores are up to 5 times slower than two
# that sleep (measured, docs/measurements.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
