"""Shared by all tests: where the repository's root is, and quiet threads."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
