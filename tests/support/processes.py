"""Processes of a run, forked from a server that has imported everything: each is there in milliseconds."""

from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import forking
from tests.support.worker import work


@pytest.fixture(scope="module")
def start() -> Iterator[Any]:
    """Start a process on a folder. All that still run at the end are killed."""
    context = forking()
    started: list[BaseProcess] = []

    def start(output: Path, data: Path, **options: Any) -> BaseProcess:
        process = context.Process(target=work, args=(output, data), kwargs=options)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def finish(start: Any, output: Path, data: Path, **options: Any) -> None:
    """One more process, until all is done."""
    process = start(output, data, **options)
    process.join(timeout=300)
    assert process.exitcode == 0
