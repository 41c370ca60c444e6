"""Processes forked from one that has imported what takes seconds to import.

`multiprocessing`'s own fork server is one for a whole process, with one list of modules. Here each list of modules has
a server, and all that a test run starts share it: pytest's workers, and the processes that launchers start for them.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import functools
import gc
import hashlib
import importlib
import multiprocessing
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from typing import Any

from paths import ROOT, TESTS

# Holds the process with whose end the servers end, and the folder of their sockets.
SHARED = "NLPKD_TESTS_FORK_SERVERS"
# Of the variables that begin so, packages read all but the token while they are imported.
READ_AT_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_")
# A server that nobody has asked for so long ends, and is started anew when it is asked again.
IDLE_S = 180
CLONE_NEWNET = 0x40000000


def share() -> tuple[int, Path]:
    """Make this process, and all that it starts, use the same servers; return their owner and folder."""
    if SHARED not in os.environ:
        folder = tempfile.mkdtemp(prefix="forks-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[SHARED] = f"{os.getpid()}:{folder}"
    owner, folder = os.environ[SHARED].split(":", 1)
    return int(owner), Path(folder)


class ForkServer:
    """A process that has imported some modules, and forks others on request; the first request starts it.

    Args:
        modules: what it imports, by name.
        parent: the server that it is forked from.
        variables: those of the environment that its modules read while they are imported.
    """

    def __init__(self, modules: Sequence[str], parent: ForkServer | None, variables: Mapping[str, str]):
        self.modules, self.parent, self.variables = [*modules], parent, dict(variables)
        self.owner, folder = share()
        name = hashlib.sha256(repr([self.modules, sorted(self.variables.items())]).encode()).hexdigest()[:16]
        self.address = str(folder / name)

    def start(self, target: Callable[..., None], *arguments: Any, streams: Sequence[int] = ()) -> Forked:
        """Call a function of a module in a process of its own, which ends with the `Forked` that is returned.

        Args:
            target: the function.
            arguments: what it is called with.
            streams: descriptors of files that become its 0, 1, 2; a fourth is the network namespace that it enters.
        """
        return Forked(self._connect(), (target, arguments, True), streams)

    def _connect(self) -> Connection:
        with _locked(self.address):
            if not os.path.exists(self.address):
                self._begin()
            return Client(self.address, "AF_UNIX")

    def _begin(self) -> None:
        serving = (self.address, self.modules, self.variables, self.owner)
        if self.parent is not None:
            Forked(self.parent._connect(), (_serve, (*serving, IDLE_S), False), ())
        else:
            paths = [str(ROOT), str(TESTS), str(TESTS / "faults"), os.environ.get("PYTHONPATH", "")]
            known = {name: value for name, value in os.environ.items() if not name.startswith(READ_AT_IMPORT)}
            known |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
            subprocess.Popen([sys.executable, "-c", f"import forks; forks._serve(*{serving})"], env=known)
        deadline = time.monotonic() + 100
        while not os.path.exists(self.address):
            assert time.monotonic() < deadline, f"no server of {self.modules}"
            time.sleep(0.005)


class Forked:
    """A process that a server has forked, with the names of `multiprocessing.Process`."""

    def __init__(self, connection: Connection, request: tuple, streams: Sequence[int]):
        self._connection, self._code = connection, None
        connection.send((*request, len(streams)))
        if streams:
            with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as channel:
                socket.send_fds(channel, [b"."], [*streams])
        self.pid: int = connection.recv()

    @property
    def exitcode(self) -> int | None:
        """Its exit status, less than 0 for a signal; None while it runs."""
        self.join(0)
        return self._code

    def is_alive(self) -> bool:
        """Check whether it runs."""
        return self.exitcode is None

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        if self._code is None and self._connection.poll(timeout):
            self._code = self._connection.recv()

    def kill(self) -> None:
        """End it, if it runs."""
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)


@functools.cache
def _server(modules: tuple[str, ...], parent: ForkServer | None, variables: tuple[tuple[str, str], ...]) -> ForkServer:
    return ForkServer(modules, parent, dict(variables))


def fork_server(
    *modules: str, parent: ForkServer | None = None, environment: Mapping[str, str] | None = None
) -> ForkServer:
    """Return the server that has imported these modules, with what an environment says of the Hub and its folders.

    Args:
        modules: their names.
        parent: the server that it is forked from; without one it is given nothing that is read at import.
        environment: the variables of what it will fork; those of this process unless given.
    """
    known = {} if parent is None else os.environ if environment is None else environment
    read = {name: known[name] for name in known if name.startswith(READ_AT_IMPORT) and name != "HF_TOKEN"}
    return _server(modules, parent, tuple(sorted(read.items())))


@contextmanager
def _locked(address: str) -> Iterator[None]:
    with open(f"{address}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _serve(address: str, modules: list[str], variables: dict[str, str], owner: int, idle_s: float | None = None):
    """Import, and fork a process for every connection, until the owner has ended or nothing is asked for long."""
    os.environ.update(variables)
    with socket.socket(socket.AF_UNIX) as listener:
        # Under the name that others look for only when it listens.
        listener.bind(f"{address}.new")
        listener.listen(128)
        os.rename(f"{address}.new", address)
        for module in modules:
            importlib.import_module(module)
        # No garbage: every training in what is forked would look through it.
        gc.freeze()
        owner_ended = os.pidfd_open(owner)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while owner_ended not in (ready := select.select([listener, owner_ended], [], [], idle_s)[0]):
            if not ready:
                with _locked(address):
                    if select.select([listener], [], [], 0)[0]:
                        continue
                    os.unlink(address)
                    break
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _attend(Connection(connection.detach()))
                os._exit(0)
            connection.close()
    os._exit(0)


def _attend(connection: Connection) -> None:
    """Fork the one process that a connection asks for, tell of its start and end, and end it with the connection."""
    target, arguments, tied, count = connection.recv()
    streams: list[int] = []
    if count:
        with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            streams = socket.recv_fds(channel, 1, count)[1]
    process = multiprocessing.get_context("fork").Process(target=_become, args=(target, arguments, streams))
    process.start()
    connection.send(process.pid)
    if not tied:
        return
    for stream in streams:
        os.close(stream)
    if process.sentinel not in wait([connection, process.sentinel]):
        process.kill()
    process.join()
    # Whoever asked may have ended.
    try:
        connection.send(process.exitcode)
    except BrokenPipeError:
        pass


def _become(target: Callable[..., None], arguments: tuple, streams: list[int]) -> None:
    for number, stream in enumerate(streams[:3]):
        os.dup2(stream, number)
    for network in streams[3:]:
        if os.fstat(network).st_ino != os.stat("/proc/self/ns/net").st_ino:
            assert ctypes.CDLL(None, use_errno=True).setns(network, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    for stream in streams:
        os.close(stream)
    target(*arguments)
