"""Who may use the loaded model: runs share it, and whoever changes it has it alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """`shared` waits while somebody is, or waits to be, `alone`; `alone` until no one else is inside."""

    def __init__(self):
        self.inside = 0  # runs, those included that wait for one another
        self._changing = False
        self._changed = threading.Condition()

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._changing)
            self.inside += 1
        try:
            yield
        finally:
            with self._changed:
                self.inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._changing)
            self._changing = True
            self._changed.wait_for(lambda: self.inside == 0)
        try:
            yield
        finally:
            with self._changed:
                self._changing = False
                self._changed.notify_all()
