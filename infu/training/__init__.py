"""Training: how InfuseNet and the projection are made. The one part of infu/ that imports torch; nothing else
imports it. Values that are the paper's, and those it is silent about: docs/training.md."""
