"""Fuzz one reader of weight files, guided by coverage (github.com/google/atheris, which is libFuzzer).

`python tests/fuzz_reader.py gguf FOLDER -max_total_time=10`: FOLDER holds files to begin with and takes those
that reach new code; one that begins with a brace is a safetensors file's header, whose length and data are
put around it. A file is read, or refused in a sentence of ours; anything else ends the run with a trace and
leaves the file as `crash-...`. tests/test_fuzz.py runs this for seconds.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["infu.weights"]):
    from infu.errors import InfuError
    from infu.weights.checkpoint import find_parts, open_part
    from infu.weights.files import open_weights
    from infu.weights.gguf import open_gguf  # noqa: F401 (here, so that it is instrumented too)
    from infu.weights.lora import read_lora
    from infu.weights.torchfile import read_torch_file  # noqa: F401

SUFFIXES = {"safetensors": ".safetensors", "gguf": ".gguf", "torch": ".pt", "lora": ".safetensors"}
SHAPES = {  # of a network with a fused, a swapped and a controlled module
    "transformer": {
        **{f"transformer_blocks.0.attn.to_{name}": (4, 4) for name in "qkv"},
        "transformer_blocks.0.attn.norm_q": (2,),
        "norm_out.linear": (8, 4),
        "x_embedder": (4, 4),
    },
    "text_encoder": {"text_model.encoder.layers.0.self_attn.q_proj": (4, 4)},
}
DATA = bytes(range(256)) * 4  # behind a header
LONGEST = 4000  # characters of a sentence, whatever a file calls its tensors


def read(kind: str, path: Path) -> None:
    if kind == "lora":
        read_lora(path, SHAPES)
        return
    weights = open_weights(path)
    for name in weights:
        weights.read(name)
    for part in find_parts(weights):
        checkpoint = open_part(path, part)
        for name in checkpoint:
            checkpoint.read(name)


def main() -> None:
    kind = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{SUFFIXES[kind]}"

        def test_one(content: bytes) -> None:
            if content.startswith(b"{"):
                content = len(content).to_bytes(8, "little") + content + DATA
            path.write_bytes(content)
            try:
                read(kind, path)
            except InfuError as error:
                text = str(error)
                assert 20 < len(text) < LONGEST and folder not in text, text
                text.encode()  # can be printed

        atheris.Setup(sys.argv, test_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
