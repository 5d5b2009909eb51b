"""The one function that runs the networks: in this process, or on ZeroGPU in one that was lent a GPU.

There, what goes in and what comes out is pickled: a request whose photographs are read, steps with their
small pictures, finished pictures. Whatever can go wrong without a GPU is found out before one is asked for.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import spaces

from infu.errors import InfuError
from infu.few_steps import settle
from infu.memory import read_networks
from infu.metadata import describe_person
from infu.models import versioned
from infu.pipeline import Result, Step, read_photographs, stream
from infu.request import GenerationRequest
from page.quota import asked_for, seconds_needed

if TYPE_CHECKING:
    from backends.base import Backend

COMPILING = 1500  # seconds, what HF's own examples ask for


class Device:
    """Runs requests on the one loaded backend. ZeroGPU forks the process that runs them off this one at the
    first of them, so that it holds the backend that is loaded by then."""

    def __init__(self):
        self.backend: Backend | None = None
        self._lent = spaces.GPU(duration=self._duration)(self._run)  # as it is where nothing is lent

    def look_ahead(self) -> None:
        """Read now what is wanted of the weights' files later: ZeroGPU deletes them at the launch."""
        read_networks(self.backend.files)
        self.backend.module_shapes  # noqa: B018  it is kept

    def compile_ahead(self) -> None:
        """On ZeroGPU, at the start: a GPU is lent for the compiling alone, of which files are left."""
        folder = Path(tempfile.mkdtemp(prefix="infu-aoti-"))
        spaces.GPU(duration=COMPILING)(self.backend.compile_ahead)(folder)
        self.backend.use_packages(folder)

    def stream(
        self, request: GenerationRequest, model_version: str | None, enough: Callable[[], bool]
    ) -> Iterator[Step | Result]:
        """`pipeline.stream`, with this version of InfiniteYou (None: as it is)."""
        backend = self.backend
        version = model_version if backend.model_version is not None else None
        if version not in (None, backend.model_version):
            versioned(backend.files, version)
        read = read_photographs(request, backend)
        for lora in request.loras:
            backend.read_lora(lora.path)
        settled, _ = settle(request, backend)  # as the run settles it, with photographs in their place
        with tempfile.TemporaryDirectory(prefix="infu-run-") as folder:
            word = Path(folder) / "enough"  # a file: the one thing the other process sees while it runs
            with closing(self._lent(read, version or backend.model_version, str(word))) as events:
                for event in events:
                    if isinstance(event, InfuError):
                        raise event
                    if isinstance(event, Result):
                        event = replace(event, metadata=event.metadata | describe_person(settled))
                    yield event
                    if enough():
                        word.touch()

    def _run(
        self, request: GenerationRequest, model_version: str | None, word: str
    ) -> Iterator[Step | Result | InfuError]:
        """What may run elsewhere. An `InfuError` is yielded: ZeroGPU would let only its name through."""
        try:
            if model_version is not None:
                self.backend.use_version(model_version)
            yield from stream(request, self.backend, enough=Path(word).exists)
        except InfuError as error:
            yield InfuError(str(error))

    def _duration(self, request: GenerationRequest, model_version: str | None, word: str) -> int:
        switched = model_version != self.backend.model_version
        return asked_for(seconds_needed(request, read_networks(self.backend.files), switched))
