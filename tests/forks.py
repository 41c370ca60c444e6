"""Processes forked from one that has imported what takes seconds to import.

`multiprocessing`'s own fork server is one for a whole process, with one list of modules; here each list has a server.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from paths import ROOT, TESTS


class ForkServer:
    """A process that has imported some modules, and forks others on request.

    Args:
        modules: what it imports, by name.
    """

    def __init__(self, *modules: str):
        self._connection, theirs = multiprocessing.Pipe()
        self._numbers = itertools.count()
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        paths = [str(ROOT), str(TESTS), str(TESTS / "faults"), os.environ.get("PYTHONPATH", "")]
        program = f"import forks; forks._serve({theirs.fileno()}, {[*modules]})"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        subprocess.Popen([sys.executable, "-c", program], env=environment, pass_fds=[theirs.fileno()])
        theirs.close()

    def start(self, target: Callable[..., None], *arguments: Any) -> Forked:
        """Call a function of a module in a process of its own."""
        number = next(self._numbers)
        self._connection.send((number, target, arguments))
        while number not in self._pids:
            self._receive(None)
        return Forked(self, number, self._pids[number])

    def exit_code(self, number: int, timeout: float | None = 0) -> int | None:
        """Wait for the end of a process; None where it takes longer."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while number not in self._codes:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._receive(left):
                return None
        return self._codes[number]

    def _receive(self, timeout: float | None) -> bool:
        if not self._connection.poll(timeout):
            return False
        kind, number, value = self._connection.recv()
        (self._pids if kind == "started" else self._codes)[number] = value
        return True


class Forked:
    """A process that a server has forked, with the names of `multiprocessing.Process`."""

    def __init__(self, server: ForkServer, number: int, pid: int):
        self.server, self.number, self.pid = server, number, pid

    @property
    def exitcode(self) -> int | None:
        """Its exit status, less than 0 for a signal; None while it runs."""
        return self.server.exit_code(self.number)

    def is_alive(self) -> bool:
        """Check whether it runs."""
        return self.exitcode is None

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        self.server.exit_code(self.number, timeout)

    def kill(self) -> None:
        """End it, if it runs."""
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)


@functools.cache
def fork_server(*modules: str) -> ForkServer:
    """Return the server that has imported these modules, started at the first call."""
    return ForkServer(*modules)


def _serve(descriptor: int, modules: list[str]) -> None:
    """Fork what is asked for, and tell of starts and ends, until nobody can ask any more."""
    for module in modules:
        importlib.import_module(module)
    requests, fork = Connection(descriptor), multiprocessing.get_context("fork")
    running: dict[int, multiprocessing.process.BaseProcess] = {}
    while True:
        ready = wait([requests, *(process.sentinel for process in running.values())])
        for number, process in list(running.items()):
            if process.sentinel in ready:
                process.join()
                requests.send(("ended", number, process.exitcode))
                del running[number]
        if requests in ready:
            try:
                number, target, arguments = requests.recv()
            except EOFError:
                break
            running[number] = process = fork.Process(target=target, args=arguments)
            process.start()
            requests.send(("started", number, process.pid))
    for process in running.values():
        process.kill()
