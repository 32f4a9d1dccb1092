"""Commands in processes of their own, forked from one that has imported torch, diffusers and them: a tenth of the time to start one.

What a process reads from its environment while it imports, it has read when the first of them was started.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parents[2]
MODULES = {
    "precompute/run.py": "precompute.run",
    "precompute/verify.py": "precompute.verify",
    "precompute/preview.py": "precompute.preview",
    "precompute/push.py": "precompute.push",
    "precompute/pack.py": "precompute.pack",
    "precompute/choose.py": "precompute.choose",
    "precompute/make.py": "precompute.make",
}


def forking() -> ForkServerContext:
    """Processes that begin with torch and the commands imported."""
    os.environ["PYTHONPATH"], os.environ["HF_HUB_OFFLINE"] = str(ROOT), "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*MODULES.values(), __name__, "tests.support.worker"])
    return context


def _become(command: Sequence[str], cwd: str, environment: Mapping[str, str], out: str, err: str) -> None:
    """Be the command, as far as it can tell."""
    for descriptor, path in ((1, out), (2, err)):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(command)
    try:
        sys.modules[MODULES[command[0]]].main()
    finally:
        atexit._run_exitfuncs()


class Forked:
    """One command that runs: `python FILE ARGUMENTS`, from the repository's root unless `cwd` says otherwise."""

    def __init__(
        self,
        *command: str | Path,
        cwd: str | Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.command = [str(word) for word in command]
        self._output = tempfile.TemporaryDirectory()
        self._out, self._err = (os.path.join(self._output.name, name) for name in ("out", "err"))
        values = {**os.environ, **(environment or {})}
        self.process: ForkServerProcess = forking().Process(
            target=_become, args=(self.command, str(cwd), values, self._out, self._err)
        )
        self.process.start()

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Raises subprocess.TimeoutExpired, and ends the process, if it takes longer than `timeout` seconds."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise subprocess.TimeoutExpired(
                self.command, timeout, self._read(self._out), self._read(self._err)
            )
        try:
            return subprocess.CompletedProcess(
                self.command, self.process.exitcode, self._read(self._out), self._read(self._err)
            )
        finally:
            self._output.cleanup()

    @staticmethod
    def _read(path: str) -> str:
        file: TextIO
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()


def run_command(
    *command: str | Path, cwd: str | Path = ROOT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python FILE ARGUMENTS`: its exit code and what it printed."""
    return Forked(*command, cwd=cwd, environment=environment).wait()
