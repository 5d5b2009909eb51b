"""`spaces`, for ZeroGPU, imported before anything that imports torch, and told what it may delete.

It writes the weights that are on `cuda` at the launch into a file of its own, and then deletes the files
they were mapped from. FLUX.1-dev's may go: 34 GB of a disk that holds that file too. InfiniteYou's have to
stay, so that a process which was switched to the other version can be switched back.
"""

import os
from pathlib import Path

FLUX = Path.home() / ".cache/huggingface/hub/models--black-forest-labs--FLUX.1-dev/blobs/*"
os.environ.setdefault("ZEROGPU_MMAP_AUTOPRUNE_PATTERN", str(FLUX))

import spaces  # noqa: E402, F401
