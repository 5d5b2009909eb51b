"""load_backend(): the one place where a backend is chosen. Neither torch nor mlx is imported before."""

import importlib.util
import platform
import sys
from pathlib import Path

from backends.base import Backend
from infu.errors import InvalidRequest, ModelError, UnknownName
from infu.models import locate

BACKENDS = ("auto", "mlx", "pytorch")
DTYPES = ("bfloat16", "float16", "float32")
OFFLOADS = ("model", "sequential")


def load_backend(
    name: str = "auto",
    base_model_path: str | Path | None = None,
    transformer_path: str | Path | None = None,
    vae_path: str | Path | None = None,
    text_encoder_path: str | Path | None = None,
    text_encoder_2_path: str | Path | None = None,
    infusenet_path: str | Path | None = None,
    model_dir: str | Path | None = None,
    model_version: str = "aes_stage2",
    dtype: str | None = None,
    quantize: int | None = None,
    offload: str | None = None,
) -> Backend:
    """Load a model. Without any path: the mini model that ships with the project.

    `name`: "pytorch", "mlx" or "auto" (MLX on Apple Silicon, else PyTorch: CUDA where there is one, else the
    CPU). Paths are folders or hub ids in the released layouts; `transformer_path` and the like replace one
    part of the base. `model_dir` None with a base given: plain FLUX, no identity. `dtype` None: what the
    device does fastest and safely. `quantize`: 8 or 4 bits, weights only. `offload` "model": a network is on
    the device only while it works; "sequential": a layer is. Raises `InfuError`.
    """
    if name not in BACKENDS:
        raise UnknownName("backend", name, BACKENDS)
    if dtype is not None and dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    if offload is not None and offload not in OFFLOADS:
        raise UnknownName("offload", offload, OFFLOADS)
    if name == "auto":
        name = "mlx" if on_apple_silicon() and importlib.util.find_spec("mlx") else "pytorch"
    package = "torch" if name == "pytorch" else "mlx"
    if importlib.util.find_spec(package) is None:
        raise ModelError(
            f"The {name} backend needs the package {package!r}, which is not installed. "
            f"Install it with `pip install '.[{name}]'`, or choose another backend."
        )
    files = locate(
        base_model_path=base_model_path,
        model_dir=model_dir,
        model_version=model_version,
        transformer_path=transformer_path,
        vae_path=vae_path,
        text_encoder_path=text_encoder_path,
        text_encoder_2_path=text_encoder_2_path,
        infusenet_path=infusenet_path,
    )
    if name == "mlx":
        from backends.mlx.backend import MlxBackend

        return MlxBackend(files, dtype=dtype, quantize=quantize, offload=offload)
    if quantize not in (None, 8, 4):
        raise InvalidRequest(f"quantize must be 8 or 4 bits, or left out, not {quantize!r}.")
    from backends.pytorch.backend import PytorchBackend

    return PytorchBackend(files, dtype=dtype, quantize=quantize, offload=offload)


def on_apple_silicon() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"
