"""A ControlNet beside the DiT, in what both backends share: when it runs, with which text, and which of the
base's blocks its residuals reach.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infu.errors import BrokenFile
from infu.flow import in_window
from infu.hints import read_hint
from infu.hooks import NOTHING, Additions, Run, Runner
from infu.models import find_controlnet
from infu.plugins import ControlNet
from infu.weights.controlnet import ControlNetFile, read_controlnet
from infu.weights.lora import TRANSFORMER, Shapes
from infu.weights.names import count_blocks

if TYPE_CHECKING:
    from backends.base import Array, Backend, Text


class ControlNetRunner(Runner):
    """The rules of all ControlNets. A backend adds the network.

    In a negative pass diffusers' ControlNets add again what they added to the positive one; XLabs' run a
    second time, with the negative text.
    """

    def __init__(self, plugin: ControlNet, backend: "Backend", run: Run):
        self.plugin, self.run = plugin, run
        path = find_controlnet(plugin.path)
        self.file = read_controlnet(path)
        shapes = backend.module_shapes[TRANSFORMER]
        check_widths(self.file, shapes)
        self.mode = self.file.find_mode(plugin.mode or plugin.hint)
        if plugin.mode is not None and not self.file.num_modes:
            self.notes = (f"{self.file.name} knows one kind of hint: its mode was not used.",)
        self.depth, _ = count_blocks(shapes)
        self.network = backend.network("controlnet", path, lambda: self.load(path))
        hint = read_hint(plugin.image, plugin.hint, run.size, (run.width, run.height), plugin.hint_model)
        control = self.embed(hint) if self.file.reads_pixels else backend.encode_image(hint)
        self.positive = self.make_constants(run.text, control)
        self.opposite = None
        if run.negative is not None and self.file.reads_pixels:
            self.opposite = self.make_constants(run.negative, control)
        self.last: Any = None  # what the positive pass of this step got

    @abstractmethod
    def load(self, path: Any) -> Any:
        """The network of a file or folder."""

    @abstractmethod
    def embed(self, hint: Any) -> "Array":
        """XLabs': a hint's pixels, uint8 (H, W, 3), through the network's convolutions, packed (1, L, 64)."""

    @abstractmethod
    def make_constants(self, text: "Text", control: "Array") -> Any:
        """What the network needs at every step, for one text and the hint's packed latents (1, L, 64)."""

    @abstractmethod
    def residuals(self, constants: Any, step: int, latents: "Array") -> Any:
        """The network's own residuals, a backend's `dit.Residuals`, times the plug-in's scale."""

    def add(self, step: int, latents: "Array", negative: bool) -> Additions:
        if not in_window(step, self.run.num_steps, self.plugin.start, self.plugin.end):
            return NOTHING
        if not negative or self.opposite is not None:
            found = self.residuals(self.opposite if negative else self.positive, step, latents)
            self.last = self.repeated(found) if self.file.reads_pixels else found
        return Additions(residuals=(self.last,))

    def repeated(self, residuals: Any) -> Any:
        """XLabs' two residuals, in turn for each double block of the base."""
        samples: Sequence[Any] = residuals.doubles
        doubles = [samples[i % len(samples)] for i in range(self.depth)]
        return type(residuals)(doubles, residuals.singles)


def check_widths(file: ControlNetFile, base: Shapes) -> None:
    """Raise `BrokenFile` for a ControlNet that was made for another base."""
    for name, shape in file.shapes.items():
        if tuple(base[name]) != shape:
            raise BrokenFile(
                f"{file.name} was made for another base model: its {name} is {shape}, this one's is "
                f"{tuple(base[name])}. Choose one made for the loaded model."
            )
