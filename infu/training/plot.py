"""The losses of a run as a picture: over the steps, and over t, where a mean over t hides both ends."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from infu.training.loss import BINS

POINTS = 400  # of a curve: each is the mean over as many steps as there are to a point


def draw_losses(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """The lines of a log -> a PNG at `path`."""
    steps = np.array([line["step"] for line in lines])
    sums, counts = (np.array([line[key] for line in lines]) for key in ("sums", "counts"))  # (S, BINS)
    chunks = np.array_split(np.arange(len(lines)), min(len(lines), POINTS))
    at = [steps[chunk].mean() for chunk in chunks]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    over_steps, over_time = figure.subplots(1, 2)
    over_steps.plot(at, [sums[c].sum() / counts[c].sum() for c in chunks], color="black", label="all t")
    for low in (0, BINS // 2, BINS - 1):  # both ends and the middle
        filled = [c for c in chunks if counts[c, low].sum()]
        values = [sums[c, low].sum() / counts[c, low].sum() for c in filled]
        label = f"t {low / BINS:g} to {(low + 1) / BINS:g}"
        over_steps.plot([steps[c].mean() for c in filled], values, linewidth=0.8, label=label)
    over_steps.set(xlabel="step", ylabel="squared error", title="Loss")
    over_steps.legend()
    last = slice(-max(1, len(lines) // 10), None)  # the last tenth of the run
    seen = counts[last].sum(axis=0)
    means = np.divide(sums[last].sum(axis=0), seen, out=np.full(BINS, np.nan), where=seen > 0)
    over_time.bar((np.arange(BINS) + 0.5) / BINS, means, width=0.9 / BINS, color="tab:grey")
    over_time.set(xlabel="t (0 the picture, 1 noise)", title="Loss by t, last tenth of the steps")
    figure.savefig(path, format="png", dpi=110)
