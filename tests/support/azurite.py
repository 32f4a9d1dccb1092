"""Azurite, Microsoft's own stand-in for Azure's blob store, on loopback: `npm install azurite`. Its container is made by their client."""

import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.waiting import wait_until

ACCOUNT = "devstoreaccount1"
# Published with it, and the same for everybody.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Azurite:
    """A running one, with a container `box`."""

    def __init__(self, port: int) -> None:
        blob = pytest.importorskip("azure.storage.blob", reason="pip install adlfs")
        self.endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        named = {"AccountName": ACCOUNT, "AccountKey": KEY, "BlobEndpoint": self.endpoint}
        connection = "".join(f"{name}={value};" for name, value in named.items())
        # fsspec's, for the loader.
        self.storage_options = {"connection_string": f"DefaultEndpointsProtocol=http;{connection}"}
        self._box = blob.ContainerClient.from_connection_string(
            self.storage_options["connection_string"], "box"
        )
        self._box.create_container()

    @property
    def options(self) -> tuple[str, ...]:
        """`--store-option` of a run."""
        return f"account_name={ACCOUNT}", f"account_key={KEY}", f"endpoint={self.endpoint}"

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Contents by key below the prefix."""
        keys = [blob.name for blob in self._box.list_blobs(name_starts_with=f"{prefix}/")]
        return {key.removeprefix(f"{prefix}/"): self._box.download_blob(key).readall() for key in keys}

    def close(self) -> None:
        self._box.close()


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    command = shutil.which("azurite-blob")
    if command is None:
        pytest.skip("npm install azurite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--skipApiVersionCheck", "--inMemoryPersistence", "--disableTelemetry", "--silent"]
    with subprocess.Popen(
        [command, "--blobHost", "127.0.0.1", "--blobPort", str(port), *flags], stdout=subprocess.DEVNULL
    ) as server:
        try:
            wait_until(lambda: _answers(port))
            store = Azurite(port)
            yield store
            store.close()
        finally:
            server.kill()


def _answers(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0
