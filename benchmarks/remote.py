"""A cold epoch over a network, side by side: the same 4,000 samples behind a server with 20 ms of latency, one table for each line.

    pip install "latentmill[bench]"
    python benchmarks/remote.py                    # --samples 4000 --latency 20 --rates 0 100 --workers 0

Data and batches are those of benchmarks/loader.py. The server is a process of its own on this machine: it waits before each
answer, shares a rate (MB/s, 0: none) among all its connections, and counts what it sends. Latentmill and webdataset (by curl, as is
its way) read http; MosaicML and litData speak S3 to it. Each run is a process with an empty cache. `bytes` is what crossed the wire
against the size of the data; `two` is the rate of the slower of two such loaders on one cache, against half the rate of one.
"""

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
spec = importlib.util.spec_from_file_location("local", Path(__file__).with_name("loader.py"))
assert spec and spec.loader
local: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)

PIECE = 1 << 18  # bytes sent at a time
SECRETS = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}


# --- the server -------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """latency: seconds before each answer. rate: bytes per second of all connections together; 0: as fast as it goes."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, latency: float, rate: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.latency, self.rate = folder, latency, rate
        self.counts: Counter[str] = Counter()
        self._lock, self._free = threading.Lock(), 0.0

    def account(self, size: int, requests: int = 0) -> None:
        """Count, and wait until the line has carried it."""
        with self._lock:
            self.counts.update(bytes=size, requests=requests)
            begin = max(self._free, time.monotonic())
            self._free = begin + (size / self.rate if self.rate else 0.0)
        time.sleep(max(0.0, begin - time.monotonic()))


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of files below the folder, with ranges: enough of http and of S3."""

    server: Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        if self.path == "/counts":
            text = json.dumps(self.server.counts).encode()
            self.server.counts.clear()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        self.server.account(0, requests=1)
        time.sleep(self.server.latency)
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(size, int(last) + 1 if last else size)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        self.send_header("ETag", f'"{size}"')
        self.end_headers()
        self.wfile.flush()
        if body:
            self.send_file(path, start, end)

    def send_file(self, path: Path, start: int, end: int) -> None:
        with path.open("rb") as file:
            while start < end:
                length = min(PIECE, end - start)
                self.server.account(length)
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, length)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def serve(folder: Path, latency: float, rate: float) -> None:
    server = Server(folder, latency, rate)
    print(server.server_port, flush=True)
    server.serve_forever()


# --- the loaders ------------------------------------------------------------------------------------------------------


def ours(url: str, cache: Path, workers: int) -> Any:
    from loader import make_loader

    return make_loader(f"{url}/tar", local.BATCH, resolution=256, num_workers=workers, cache_dir=cache)


def webdataset(url: str, cache: Path, workers: int) -> Any:
    folder = Path(os.environ["BENCH_FOLDER"])
    urls = [f"{url}/tar/{path.name}" for path in sorted((folder / "tar").glob("*.tar"))]
    return local.webdataset_of(urls, workers)


def mosaicml(url: str, cache: Path, workers: int) -> Any:
    import torch

    os.environ |= {"S3_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {name.upper(): value for name, value in SECRETS.items()}
    dataset = local.import_mosaic().StreamingDataset(
        remote="s3://mds", local=str(cache), shuffle=True, batch_size=local.BATCH
    )
    return torch.utils.data.DataLoader(dataset, batch_size=local.BATCH, num_workers=workers, drop_last=True)


def litdata(url: str, cache: Path, workers: int) -> Any:
    import litdata
    import litdata.streaming.downloader

    # Its client of chunks refuses plain http, and takes no option of ours.
    getattr(litdata.streaming.downloader, "_OBSTORE_CLIENT_OPTIONS", {})["allow_http"] = True
    options = {**SECRETS, "endpoint_url": url, "region_name": "us-east-1"}
    dataset = litdata.StreamingDataset(
        "s3://litdata", cache_dir=str(cache), shuffle=True, drop_last=True, storage_options=options
    )
    return litdata.StreamingDataLoader(dataset, batch_size=local.BATCH, num_workers=workers, drop_last=True)


LOADERS: dict[str, tuple[str, Callable[[str, Path, int], Any]]] = {
    "latentmill": ("tar", ours),
    "webdataset": ("tar", webdataset),
    "mosaicml-streaming": ("mds", mosaicml),
    "litdata": ("litdata", litdata),
}

PACKAGES = {"latentmill": "loader", "webdataset": "webdataset", "litdata": "litdata"}


def measure(name: str, url: str, cache: Path, workers: int) -> dict[str, float]:
    """Runs in a process of its own. first, epoch: seconds from the loader's making, its package imported, to the first and behind
    the last batch."""
    import torch

    torch.set_num_threads(1)
    local.import_mosaic() if name == "mosaicml-streaming" else importlib.import_module(PACKAGES[name])
    begin, first, seen = time.perf_counter(), 0.0, 0
    for batch in LOADERS[name][1](url, cache, workers):
        first = first or time.perf_counter() - begin
        tensors = list(batch.values()) if isinstance(batch, dict) else batch
        seen += len(tensors[0])
    return {"first": first, "epoch": time.perf_counter() - begin, "samples": seen}


# --- measuring --------------------------------------------------------------------------------------------------------


class Line:
    """A server in a process of its own."""

    def __init__(self, folder: Path, latency: float, rate: float) -> None:
        self.folder = folder
        command = [sys.executable, __file__, "--serve", str(folder), str(latency), str(rate)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def counts(self) -> dict[str, int]:
        """Bytes and requests since the last call."""
        with urllib.request.urlopen(f"{self.url}/counts") as answer:
            return {"bytes": 0, "requests": 0, **json.load(answer)}

    def run(self, name: str, workers: int, processes: int = 1) -> list[dict[str, float]]:
        """Cold epochs of so many loaders at once, on one cache; none where one of them failed."""
        self.counts()
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, __file__, "--one", name, self.url, cache, str(workers)]
            environment = {**os.environ, "BENCH_FOLDER": str(self.folder)}
            running = [
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
                )
                for _ in range(processes)
            ]
            done = [process.communicate() for process in running]
        if any(process.returncode for process in running):
            print(f"{name} failed: {done[0][1].strip().splitlines()[-1:]}", file=sys.stderr)
            return []
        counts = self.counts()
        return [{**json.loads(output.splitlines()[-1]), **counts} for output, _ in done]


def print_table(args: argparse.Namespace, folder: Path, rate: float) -> None:
    line = Line(folder, args.latency / 1000, rate * 1e6)
    best: dict[str, dict[str, float]] = {}
    try:
        for _ in range(args.rounds):
            for name in args.loaders:
                for run in line.run(name, args.workers):
                    before = best.get(name, run)
                    best[name] = {key: min(value, before[key]) for key, value in run.items()}
        pair = line.run("latentmill", args.workers, processes=2)
    finally:
        line.process.kill()
        line.process.wait()
    print(
        f"\n{args.latency:g} ms, {f'{rate:g} MB/s' if rate else 'no limit'}, {args.workers} workers, best of {args.rounds}\n"
    )
    print(f"{'loader':20s} {'first, s':>9s} {'epoch, s':>9s} {'bytes':>7s} {'requests':>9s} {'ours is':>8s}")
    for name, run in sorted(best.items(), key=lambda item: item[1]["epoch"]):
        size = sum(path.stat().st_size for path in (folder / LOADERS[name][0]).rglob("*") if path.is_file())
        ratio = run["epoch"] / best["latentmill"]["epoch"]
        numbers = (
            f"{run['first']:9.2f} {run['epoch']:9.2f} {run['bytes'] / size:6.3f}x {run['requests']:9.0f}"
        )
        print(f"{name:20s} {numbers} {ratio:7.2f}x")
    if pair:
        slower = max(run["epoch"] for run in pair)
        print(
            f"two at once: {2 * best['latentmill']['epoch'] / slower:.2f}x of half, {pair[0]['requests']} requests"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Loaders side by side, over a network.")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--latency", type=float, default=20.0, help="milliseconds before each answer")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 100.0], help="MB/s; 0: no limit")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--folder", type=Path, help="keep the data there; default: a temporary folder")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(Path(args.serve[0]), *map(float, args.serve[1:]))
    elif args.one:
        name, url, cache, workers = args.one
        print(json.dumps(measure(name, url, Path(cache), int(workers))))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    args.loaders = list(dict.fromkeys(["latentmill", *args.loaders]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        write = ["--folder", folder, "--samples", args.samples, "--rounds", 0, "--loaders", *args.loaders]
        writer = Path(__file__).with_name("loader.py")
        subprocess.run([sys.executable, str(writer), *map(str, write)], check=True, stdout=subprocess.DEVNULL)
        args.loaders = [name for name in args.loaders if (folder / LOADERS[name][0]).exists()]
        for rate in args.rates:
            print_table(args, folder, rate)


if __name__ == "__main__":
    main()
