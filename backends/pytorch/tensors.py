"""numpy arrays -> torch tensors, with the number formats that numpy has only through `ml_dtypes`."""

import ml_dtypes
import numpy as np
import torch
from torch import Tensor


def to_tensor(array: np.ndarray) -> Tensor:
    """A copy of `array` in its own dtype, bfloat16 and fp8 included."""
    if array.dtype in BITS:
        stored, dtype = BITS[array.dtype]
        return torch.from_numpy(array.view(stored).copy()).view(dtype)
    return torch.from_numpy(np.array(array))


BITS = {  # numpy has no such numbers of its own: same bits, through an integer
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
}
