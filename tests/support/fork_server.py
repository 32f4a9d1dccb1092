"""`python ARGUMENTS` in processes forked from one that has imported what takes long: a start costs milliseconds.

    with ForkServer(["torch", "datasets"], environment) as server:     # who imports them sees this environment
        done = server.run("precompute/verify.py", "out", cwd=ROOT, environment=environment)

    python tests/support/fork_server.py SOCKET MODULE... &             # the same by hand: ends when its standard input does
    python tests/support/fork_server.py SOCKET -- ARGUMENT...          # python ARGUMENT... here: its output, its exit code

ARGUMENTS are `FILE ...`, `-m MODULE ...` or `-c PROGRAM`. Who asks may be killed: what he asked for ends with him.
"""

import atexit
import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO


class ForkServer:
    """modules: imported before. environment: that in which they are imported; what they read of it then stays so."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self._modules, self.environment = modules, environment

    def __enter__(self) -> "ForkServer":
        self._folder = tempfile.TemporaryDirectory()
        self._socket = os.path.join(self._folder.name, "s")
        self._server = subprocess.Popen(
            [sys.executable, __file__, self._socket, *self._modules],
            env=dict(self.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._server.stdout and self._server.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()
        self._folder.cleanup()

    def run(
        self, *arguments: str, cwd: str | Path, environment: Mapping[str, str], timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Raises TimeoutError if it takes longer than `timeout` seconds."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            code = ask(self._socket, arguments, str(cwd), environment, (out, err), timeout)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


def ask(
    path: str,
    arguments: Sequence[str],
    cwd: str,
    environment: Mapping[str, str],
    outputs: Sequence[IO[str]],
    timeout: float | None,
) -> int:
    """The exit code of `python ARGUMENTS`; 70 if the process was taken down."""
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(timeout)
        server.connect(path)
        # Of an own length, for a program may be longer than what one message carries.
        with tempfile.TemporaryFile() as request:
            request.write(json.dumps([arguments, cwd, dict(environment)]).encode())
            request.seek(0)
            socket.send_fds(server, [b"?"], [request.fileno(), *(output.fileno() for output in outputs)])
        answer = server.recv(1)
    return answer[0] if answer else 70


def serve(path: str, modules: Sequence[str]) -> None:
    # `python FILE` put this file's folder first, where no module is looked for.
    del sys.path[0]
    for name in modules:
        __import__(name)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    while True:
        asked, _ = server.accept()
        if os.fork() == 0:
            server.close()
            _answer(asked)
        asked.close()


def _end_with_standard_input() -> None:
    sys.stdin.read()
    os._exit(0)


def _answer(asked: socket.socket) -> None:
    """Be the command, send its exit code, and end: this is the forked process."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, (request, *outputs), _, _ = socket.recv_fds(asked, 1, 3)
    with open(request) as file:
        arguments, cwd, environment = json.load(file)
    for descriptor, place in zip(outputs, (1, 2), strict=True):
        os.dup2(descriptor, place)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    threading.Thread(target=_end_with_the_asker, args=(asked,), daemon=True).start()
    code = _become(arguments)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    asked.sendall(bytes([code]))
    os._exit(code)


def _become(arguments: list[str]) -> int:
    """Run it as `python ARGUMENTS` would; its exit code."""
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path.insert(0, "")
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        elif arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001  as Python itself ends
        traceback.print_exc()
        return 1
    finally:
        with warnings.catch_warnings():
            atexit._run_exitfuncs()
    return 0


def _end_with_the_asker(asked: socket.socket) -> None:
    if not asked.recv(1):
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    if "--" not in sys.argv[:3]:
        serve(sys.argv[1], sys.argv[2:])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[3:], os.getcwd(), os.environ, (sys.stdout, sys.stderr), None))
