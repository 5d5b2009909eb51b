"""A stand-in for ZeroGPU's `spaces`, first on PYTHONPATH: what is decorated runs in another process, all that
goes in and comes out is pickled, and outside it neither CUDA nor a network may be used.

As the real one does (0.51, `zero/wrappers.py`) it forks the process at the first call and keeps it, passes an
exception's name alone, and lets a closed generator end at its next value.
"""

import multiprocessing
import os
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr
import torch

LIMIT = 6  # seconds that may be asked for: a visitor's quota
FORK = multiprocessing.get_context("fork")
forked = False


def refuse(*_: Any, **__: Any) -> None:
    if not forked:
        raise RuntimeError("CUDA or a network was used outside @spaces.GPU")


torch.cuda._lazy_init = refuse
torch.nn.modules.module.register_module_forward_pre_hook(refuse)


def GPU(task: Callable | None = None, *, duration: Any = 60, size: str | None = None) -> Callable:
    if task is None:
        return lambda task: GPU(task, duration=duration, size=size)
    worker: list[tuple[Any, Any]] = []  # the pipe to the process, and the event that stops it

    @wraps(task)
    def call(*args: Any) -> Iterator[Any]:
        seconds = duration(*args) if callable(duration) else duration
        if seconds > LIMIT:
            raise gr.Error(f"You have exceeded your ZeroGPU quota ({seconds}s requested vs. {LIMIT}s left).")
        sent = pickle.dumps(args)
        if not worker:
            worker.append(start(task))
        pipe, stop = worker[0]
        stop.clear()
        print(f"GPU asked for {seconds} s, {len(sent)} bytes", flush=True)
        pipe.send_bytes(sent)
        try:
            while (answer := pickle.loads(pipe.recv_bytes()))[0] == "value":
                yield answer[1]
        except GeneratorExit:
            stop.set()
            while pickle.loads(pipe.recv_bytes())[0] == "value":
                pass
            print("GPU stopped", flush=True)
            raise
        if answer[0] == "error":
            raise RuntimeError(f"ZeroGPU worker error: {answer[1]}")

    return call


def start(task: Callable) -> tuple[Any, Any]:
    here, there = FORK.Pipe()
    stop = FORK.Event()
    FORK.Process(target=work, args=(task, there, stop), daemon=True).start()
    return here, stop


def work(task: Callable, pipe: Any, stop: Any) -> None:
    """The other process: one call after another, each in a thread of its own, as there."""
    global forked
    forked = True
    print(f"GPU process {os.getpid()} of {os.getppid()}", flush=True)
    while True:
        args = pickle.loads(pipe.recv_bytes())
        thread = threading.Thread(target=iterate, args=(task, args, pipe, stop))
        thread.start()
        thread.join()


def iterate(task: Callable, args: tuple, pipe: Any, stop: Any) -> None:
    values = task(*args)
    try:
        for value in values:
            if stop.is_set():
                values.close()
                break
            pipe.send_bytes(pickle.dumps(("value", value)))
        answer = ("end", None)
    except Exception as error:
        traceback.print_exc()
        answer = ("error", type(error).__name__)
    pipe.send_bytes(pickle.dumps(answer))


def gradio_auto_wrap(function: Callable) -> Callable:
    return function
