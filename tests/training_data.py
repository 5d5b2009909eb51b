"""Encoded data of random numbers, sized for the golden base: for tests of the loop, not of what it learns."""

from pathlib import Path

import torch
from golden import GOLDEN
from torch.nn import functional

from infu.training.shards import Encoded, write_black, write_dataset, write_shard

SIZES = ((64, 80), (80, 64), (64, 64))
BASE = str(GOLDEN / "base")


def write_random_data(folder: Path, num_shards: int = 2, per_shard: int = 5, text: bool = True) -> Path:
    random = torch.Generator().manual_seed(5)
    values = {"base": "base", "faces": "embedded", "embedding_size": 192, "text_tokens": 7 if text else None}
    write_dataset(folder, values)
    for size in SIZES:
        tokens = size[0] * size[1] // 256
        write_black(folder, size, torch.randn(tokens, 64, generator=random))
        for i in range(num_shards):
            samples = []
            for k in range(per_shard):
                tensors = {
                    "latents": torch.randn(tokens, 64, generator=random),
                    "control": torch.randn(tokens, 64, generator=random),
                    "embedding": functional.normalize(torch.randn(192, generator=random), dim=0),
                }
                if text:
                    tensors |= {
                        "states": torch.randn(7, 48, generator=random),
                        "pooled": torch.randn(32, generator=random),
                    }
                row = {"name": f"{i}-{k}", "caption": f"A man, number {k}", "scores": {}}
                samples.append(Encoded(size, tensors, row))
            write_shard(folder, f"{i:05d}", samples)
    return folder


def train_settings(folder: Path, data: Path, **changes) -> dict:
    """The settings of a run of a few steps, as a file of settings has them."""
    projection = {"width": 64, "depth": 2, "num_heads": 1}
    values = {
        "stage": 1,
        "data": [str(data)],
        "model_dir": str(folder / "InfiniteYou"),
        "run_dir": str(folder / "run"),
        "base_model_path": BASE,
        "blocks_per_residual": [3, 3],
        "projection": projection,
        "steps": 4,
        "batch": 4,
        "micro_batch": 2,
        "learning_rate": 1e-3,
        "max_grad_norm": 1.0,
        "precision": "no",
        "gradient_checkpointing": False,
        "workers": 0,
        "save_dtype": "float32",
    }
    return values | changes
