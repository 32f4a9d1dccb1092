"""pytest in processes forked from one that has imported the libraries, and none of ours: what `tests/mutate.sh` runs for each change.

    python tests/support/fork_pytest.py SOCKET &            # the server: ends when its standard input does
    python tests/support/fork_pytest.py SOCKET ARGUMENT...  # pytest ARGUMENT... in this directory: its output, its exit code

Who asks may be killed: the tests end with him. No byte code is written, so that no changed module is mistaken for its neighbour.
"""

import json
import os
import signal
import socket
import sys
import threading

LIBRARIES = (
    "torch", "numpy", "pyarrow.parquet", "datasets", "transformers", "diffusers", "PIL.Image", "PIL.ImageCms", "duckdb", "accelerate",
    "huggingface_hub", "fsspec", "requests", "webdataset", "hypothesis", "pytest", "_pytest.assertion.rewrite", "_hypothesis_pytestplugin",
)  # fmt: skip


def serve(path: str) -> None:
    for name in LIBRARIES:
        __import__(name)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
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
    """Run the tests, send the exit code, and end: this is the forked process."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, descriptors, _, _ = socket.recv_fds(asked, 1 << 20, 2)
    arguments, directory, environment = json.loads(request)
    for descriptor, place in zip(descriptors, (1, 2), strict=True):
        os.dup2(descriptor, place)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = True
    # `python FILE` put the folder of this file first; tests begin with the folder that they are run in.
    sys.path[0] = directory
    threading.Thread(target=_end_with_the_asker, args=(asked,), daemon=True).start()
    import pytest

    code = int(pytest.main(["-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments]))
    sys.stdout.flush()
    asked.sendall(bytes([code]))
    os._exit(code)


def _end_with_the_asker(asked: socket.socket) -> None:
    if not asked.recv(1):
        os.killpg(0, signal.SIGKILL)


def ask(path: str, arguments: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(server, [request], [1, 2])
        answer = server.recv(1)
    # No answer: the tests took their process down, which is a failure.
    return answer[0] if answer else 70


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
