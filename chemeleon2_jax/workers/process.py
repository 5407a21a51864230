"""Code of a worker process; imports the standard library alone, so that workers start fast.

Messages to a worker:   ("function", bytes), ("items", [(index, bytes), ...])
Messages from a worker: ("ready",), ("broken", text), ("done", index, bytes, error or None)
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

IN_WORKER = "CHEMELEON2_JAX_IN_WORKER"
"""Environment variable, set in workers."""

_ORPHAN_POLL_S = 1.0

MainModule = dict[str, str]
"""The parent's main module: {"name": ...}, {"file": ...} or {} (a notebook, a prompt)."""


class _Alarm(BaseException):
    """The time limit of an item; ``except Exception`` in the called function does not catch it."""


def call_with_limit(
    function: Callable[[Any], Any], item: Any, timeout_s: float | None
) -> tuple[Any, str | None]:
    """Call ``function(item)`` and return (value, None) or (None, error text).

    The limit acts in the main thread alone, which signals reach.
    """
    if timeout_s is None or threading.current_thread() is not threading.main_thread():
        return _call(function, item)

    def ring(signum: int, frame: FrameType | None) -> None:
        raise _Alarm

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            return _call(function, item)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _Alarm:
        return None, timeout_text(timeout_s)
    finally:
        signal.signal(signal.SIGALRM, previous)


def _call(function: Callable[[Any], Any], item: Any) -> tuple[Any, str | None]:
    try:
        return function(item), None
    except (Exception, SystemExit) as error:
        return None, error_text(error)


def error_text(error: BaseException) -> str:
    """Return type and message of an exception in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def timeout_text(timeout_s: float) -> str:
    """Error of an item that exceeded its limit."""
    return f"timeout after {timeout_s:g} s"


class _Unpickler(pickle.Unpickler):
    """Finds definitions of the parent's main script, which are pickled as ``__main__``."""

    def __init__(self, payload: bytes, main: MainModule) -> None:
        super().__init__(io.BytesIO(payload))
        self._main = main

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name == "__main__":
            module_name = _import_main(self._main)
        return super().find_class(module_name, global_name)


def _import_main(main: MainModule) -> str:
    """Import the parent's main module under another name, and return that name."""
    if "name" in main:
        importlib.import_module(main["name"])
        return main["name"]
    name = "__mp_main__"  # also where multiprocessing aliases the parent's main module
    if sys.modules.get(name) is sys.modules["__main__"]:
        if "file" not in main:
            raise ImportError(
                "functions defined at a prompt or in a notebook cannot be sent to worker "
                "processes; put them in a module, or use num_workers=0"
            )
        spec = importlib.util.spec_from_file_location(name, main["file"])
        if spec is None or spec.loader is None:
            raise ImportError(f"{main['file']} cannot be imported by a worker process")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules[name] = sys.modules["__main__"]
            raise
    return name


def serve(fd: int, parent_pid: int, main: MainModule) -> None:
    """Work until the parent closes the pipe or ends.

    Args:
        fd: this end of the pipe.
        parent_pid: the worker ends with this process.
        main: the parent's main module.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    warnings.simplefilter("ignore")  # they would break the parent's progress bar
    threading.Thread(target=_exit_with_parent, args=(parent_pid,), daemon=True).start()
    connection = Connection(fd)
    try:
        _serve(connection, main)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        connection.close()


def _exit_with_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_ORPHAN_POLL_S)
    os._exit(1)


def _serve(connection: Connection, main: MainModule) -> None:
    def load(payload: bytes) -> Any:
        return _Unpickler(payload, main).load()

    function: Callable[[Any], Any] = _no_function
    timeout_s: float | None = None

    def run(payload: bytes) -> Any:
        return function(load(payload))

    while True:
        kind, content = pickle.loads(connection.recv_bytes())
        if kind == "items":
            for index, payload in content:
                _limit_cpu_time(timeout_s)
                value, error = call_with_limit(run, payload, timeout_s)
                connection.send_bytes(_done(index, value, error))
            continue
        try:
            function, timeout_s = load(content)
            connection.send_bytes(pickle.dumps(("ready",)))
        except (Exception, SystemExit) as error:
            connection.send_bytes(pickle.dumps(("broken", error_text(error))))
            return


def _no_function(item: Any) -> Any:
    raise RuntimeError("items came before their function")


def _limit_cpu_time(timeout_s: float | None) -> None:
    """Have the system end a worker that is stuck in C code after its parent has ended."""
    limit_s = 0.0 if timeout_s is None else 60.0 + 2.0 * timeout_s  # 0 is no limit
    signal.setitimer(signal.ITIMER_PROF, limit_s)


def _done(index: int, value: Any, error: str | None) -> bytes:
    try:
        payload = pickle.dumps(value)
    except Exception as failure:
        payload, error = pickle.dumps(None), f"result cannot be pickled: {error_text(failure)}"
    return pickle.dumps(("done", index, payload, error))
