"""How our errors reach a client: the one place where an `InfuError` becomes Gradio's."""

import functools
import html
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from infu.errors import InfuError

LOG = logging.getLogger("infu")
FAILED = "The server could not make this picture; its log says why. Try again, or with other settings."


def told(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A generator whose `InfuError`s the client reads. Any other exception stays on the server."""

    @functools.wraps(handler)
    def tell(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from handler(*args, **kwargs)
        except InfuError as error:  # gr.Error renders HTML, and the sentence may quote the user
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None
        except gr.Error:  # ZeroGPU's own: no GPU is free, a visitor's quota is spent
            raise
        except Exception:
            LOG.exception("A request failed.")
            raise gr.Error(FAILED, print_exception=False) from None

    return tell
