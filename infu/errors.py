"""Every error whose text a user may read, as one tree.

InfuError                 something its reader can put right
├── InvalidRequest        a setting out of range, or settings that exclude one another
│   └── UnknownName       a name that does not exist; the closest match is named
├── PhotoError            a picture file that cannot be used
│   └── NoFaceError       a photograph in which no face is found
├── ModelError            a model that cannot be used here
│   ├── MissingFile       a file of the model is not there
│   ├── BrokenFile        a file is there and is not what its name says
│   ├── DownloadError     the hub refused, or could not be reached
│   └── NotEnoughMemory   it does not fit
└── NonFiniteError        the networks made NaN or infinity: never shown as a black picture

Cancelled                 not a fault: raised by the caller's own `on_step` to stop a run
"""

import difflib
from collections.abc import Iterable


class InfuError(Exception):
    """Something its reader can put right. The text says what is wrong, then what to do, and is shown as
    it is: on the page, on the command line, by the API. No server path, no trace, nothing to guess."""


class InvalidRequest(InfuError):
    """A setting out of its range, or settings that exclude one another."""


class UnknownName(InvalidRequest):
    """A name that does not exist, with the nearest one that does."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        name, known = str(name), sorted(known)
        close = difflib.get_close_matches(name, known, n=1)
        advice = f"Did you mean {close[0]!r}?" if close else f"Choose one of {', '.join(known)}."
        super().__init__(f"There is no {kind} called {name!r}. {advice}")


class PhotoError(InfuError):
    """A picture file that cannot be used: truncated, empty, too large, not a picture."""


class NoFaceError(PhotoError):
    """A photograph in which no face is found."""


class ModelError(InfuError):
    """A model that cannot be used here."""


class MissingFile(ModelError):
    """A file of the model is not there."""


class BrokenFile(ModelError):
    """A file is there and is not what its name says: truncated, a pointer, another model's."""


class DownloadError(ModelError):
    """The hub refused, or could not be reached."""


class NotEnoughMemory(ModelError):
    """The model does not fit into the memory of this machine."""


class NonFiniteError(InfuError):
    """The networks made NaN or infinity; a black picture is never returned instead."""


class Cancelled(Exception):
    """Raised by the caller's own `on_step` to stop a run; `generate` lets it pass and frees the device."""
