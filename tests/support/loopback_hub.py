"""A Hub on loopback: enough of its API for the real `huggingface_hub` client and `datasets`, and faults on request.

    with LoopbackHub() as hub:            # hub.url is the HF_ENDPOINT; tokens: hf_owner may write, hf_reader may read
        hub.fail("POST", r"/commit/", 503, times=2)

Repositories live in memory as commits of {path: blob}. Written from the requests that the client makes.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKENS = {"hf_owner": "owner", "hf_reader": "reader"}
FILES_IN_FOLDER = 10_000
LFS = (".tar", ".parquet", ".npz", ".png")


@dataclass(frozen=True)
class Blob:
    """A file at a commit; stored as the Hub does, large ones by their sha256."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        data = self.data
        if self.lfs:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """refs: branch or refs/pr/N -> commit. commits: commit -> files. log: messages, oldest first."""

    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)

    def files(self, ref: str = "main") -> dict[str, Blob]:
        return self.commits[self.refs.get(ref, ref)]

    def commit(self, ref: str, files: dict[str, Blob], message: str) -> str:
        text = f"{len(self.commits)} {ref} {message}".encode()
        oid = hashlib.sha1(text).hexdigest()
        self.commits[oid], self.refs[ref] = files, oid
        self.log.append((ref, message))
        return oid


@dataclass
class Fault:
    """Answer `status` (0: break the connection; -1: do the work, then break it; -2: say nothing) to matching requests, `times` times."""

    method: str
    path: re.Pattern[str]
    status: int
    times: int
    headers: dict[str, str]
    message: str


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", message: str = "", **more: str) -> None:
        self.status, self.code, self.message, self.more = status, code, message, more


class LoopbackHub:
    """The server, in a thread. requests: (method, path) of all it was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # uploaded, by sha256, committed or not
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.on_commit: Callable[[], None] = lambda: None
        self.commit_limit: int | None = None  # files of a commit that the gateway has no time for: 504
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(
        self,
        method: str,
        path: str,
        status: int,
        times: int = 1,
        headers: dict[str, str] | None = None,
        message: str = "",
    ) -> None:
        self.faults.append(Fault(method, re.compile(path), status, times, headers or {}, message))

    def asked(self, method: str, path: str) -> int:
        """How often."""
        return sum(m == method and re.search(path, p) is not None for m, p in self.requests)

    # --- what it does ---

    def repo(self, name: str, user: str | None) -> Repo:
        repo = self.repos.get(name)
        if repo is None or (repo.private and user != name.split("/")[0]):
            raise Refused(401 if user is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def writable(self, name: str, user: str | None) -> Repo:
        repo = self.repo(name, user)
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        if user != name.split("/")[0]:
            raise Refused(403, "", "You don't have the rights to write to this repository")
        return repo

    def revision(self, repo: Repo, revision: str) -> str:
        oid = repo.refs.get(revision, revision)
        if oid not in repo.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    def create(self, body: dict[str, Any], user: str | None) -> dict[str, Any]:
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        owner = body.get("organization") or user
        name = f"{owner}/{body['name']}"
        if name in self.repos and owner == user:
            raise Refused(409, "", "You already created this dataset repo", url=f"{self.url}/datasets/{name}")
        if owner != user:
            raise Refused(
                403, "", f"You don't have the rights to create a dataset under the namespace {owner!r}"
            )
        private = bool(body.get("private")) or body.get("visibility") == "private"
        self.repos[name] = Repo(private=private)
        rules = "".join(f"*{suffix} filter=lfs\n" for suffix in LFS)
        self.repos[name].commit("main", {".gitattributes": Blob(rules.encode(), False)}, "initial commit")
        return {"url": f"{self.url}/datasets/{name}", "name": name}

    def commit(
        self, name: str, ref: str, lines: list[dict[str, Any]], create_pr: bool, user: str | None
    ) -> Any:
        repo = self.repo(name, user) if create_pr else self.writable(name, user)
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        if (
            self.commit_limit is not None
            and sum(line["key"] != "header" for line in lines) > self.commit_limit
        ):
            raise Refused(504, "", "Gateway Time-out")
        parent = next((line["value"].get("parentCommit") for line in lines if line["key"] == "header"), None)
        if parent and not create_pr and parent != self.revision(repo, ref):
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[self.revision(repo, parent if create_pr and parent else ref)])
        message = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refused(400, "", f"lfs object {value['oid']} was never uploaded")
                files[value["path"]] = Blob(self.objects[value["oid"]], True)
            elif line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refused(404, "EntryNotFound", f"{value['path']} does not exist")
            else:
                raise Refused(400, "", f"unknown operation {line['key']}")
        if max(Counter(path.rpartition("/")[0] for path in files).values()) > FILES_IN_FOLDER:
            said = f"Each directory in your git repo can only contain up to {FILES_IN_FOLDER} files"
            raise Refused(400, "", said)
        answer: dict[str, Any] = {"pullRequestUrl": None}
        if create_pr:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
            ref = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.url}/datasets/{name}/discussions/{number}"
        oid = repo.commit(ref, files, message)
        self.on_commit()
        return {**answer, "commitOid": oid, "commitUrl": f"{self.url}/datasets/{name}/commit/{oid}"}


def entry(path: str, blob: Blob) -> dict[str, Any]:
    """A file as tree and paths-info describe it."""
    info: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid}
    if blob.lfs:
        info["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
    return info


def tree(files: dict[str, Blob], under: str, recursive: bool) -> list[dict[str, Any]]:
    """What lies in a folder, folders included."""
    entries = {}
    for path, blob in files.items():
        if path.startswith(under):
            parts = path.removeprefix(under).split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                folder = under + "/".join(parts[:depth])
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
            if recursive or len(parts) == 1:
                entries[path] = entry(path, blob)
    return [entries[path] for path in sorted(entries)]


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        hub = self.hub
        with hub.lock:
            hub.requests.append((self.command, self.path))
            fault = next(
                (f for f in hub.faults if f.times and f.method == self.command and f.path.search(self.path)),
                None,
            )
            if fault is not None:
                fault.times -= 1
        if fault is not None and fault.status == 0:
            self._break()
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault is not None and fault.status == -2:
            self.connection.recv(1)  # which ends when the client hangs up
            self.close_connection = True
            return
        if fault is not None and fault.status > 0:
            self._refuse(Refused(fault.status, "", fault.message or "out of order"), fault.headers)
            return
        try:
            with hub.lock:
                answer = self._answer()
        except Refused as refused:
            self._refuse(refused)
            return
        if fault is not None:
            self._break()
        elif isinstance(answer, bytes):
            self._send(200, answer)
        elif answer is not None:
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _break(self) -> None:
        """Reset, not close: what a cut cable or a crashed server looks like."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _refuse(self, refused: Refused, headers: dict[str, str] | None = None) -> None:
        extra = {
            "X-Error-Message": refused.message,
            **({"X-Error-Code": refused.code} if refused.code else {}),
        }
        self._send(
            refused.status,
            json.dumps({"error": refused.message, **refused.more}).encode(),
            {**extra, **(headers or {})},
        )

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return TOKENS.get(token)

    # --- routes ---

    def _answer(self) -> Any:
        for method, pattern, handler in ROUTES:
            match = re.fullmatch(pattern, self.route)
            if match and method == self.command.replace("HEAD", "GET"):
                return getattr(self, handler)(**match.groupdict())
        raise Refused(404, "", f"no such route: {self.command} {self.route}")

    def json(self) -> Any:
        return json.loads(self.body)

    def whoami(self) -> Any:
        if self.user is None:
            raise Refused(401, "", "Invalid username or password.")
        return {"type": "user", "name": self.user, "auth": {"accessToken": {"role": "write"}}, "orgs": []}

    def create(self) -> Any:
        return self.hub.create(self.json(), self.user)

    def yaml(self) -> Any:
        return {"errors": [], "warnings": []}

    def branch(self, name: str, branch: str) -> Any:
        repo = self.hub.writable(name, self.user)
        if branch in repo.refs:
            raise Refused(409, "", "Reference already exists")
        repo.refs[branch] = repo.refs["main"]
        return {}

    def info(self, name: str, revision: str = "main") -> Any:
        repo = self.hub.repo(name, self.user)
        oid = self.hub.revision(repo, revision)
        files = [{"rfilename": path} for path in sorted(repo.commits[oid])]
        tags: list[str] = []
        return {
            "id": name,
            "sha": oid,
            "private": repo.private,
            "tags": tags,
            "siblings": files,
            "downloads": 0,
        }

    def refs(self, name: str) -> Any:
        repo = self.hub.repo(name, self.user)
        branches = [{"name": r, "ref": f"refs/heads/{r}", "targetCommit": c} for r, c in repo.refs.items()]
        return {"branches": branches, "tags": [], "converts": []}

    def tree(self, name: str, revision: str, path: str | None = None) -> Any:
        repo = self.hub.repo(name, self.user)
        files = repo.commits[self.hub.revision(repo, revision)]
        entries = tree(files, f"{path}/" if path else "", recursive=self.query.get("recursive") == ["true"])
        if path and not entries:
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        start, page = int(self.query.get("cursor", ["0"])[0]), 25  # small, so that clients must turn pages
        kept = "recursive=true&" if "recursive=true" in self.path else ""
        rest = f"{self.hub.url}{urlsplit(self.path).path}?{kept}cursor={start + page}"
        more = {"Link": f'<{rest}>; rel="next"'} if start + page < len(entries) else {}
        data = json.dumps(entries[start : start + page]).encode()
        self._send(200, data, {"Content-Type": "application/json", **more})

    def paths(self, name: str, revision: str) -> Any:
        repo = self.hub.repo(name, self.user)
        files = repo.commits[self.hub.revision(repo, revision)]
        body = self.json() if self.body[:1] == b"{" else parse_qs(self.body.decode())
        found = tree(files, "", recursive=True)
        return [found_entry for found_entry in found if found_entry["path"] in body["paths"]]

    def preupload(self, name: str, revision: str) -> Any:
        create_pr = "create_pr" in self.query
        repo = self.hub.repo(name, self.user) if create_pr else self.hub.writable(name, self.user)
        there = repo.commits[self.hub.revision(repo, revision)]
        modes = []
        for file in self.json()["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS) else "regular"
            oid = there[path].oid if path in there else None
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": modes}

    def lfs_batch(self, name: str) -> Any:
        self.hub.repo(name, self.user)
        objects = []
        for wanted in self.json()["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append({**wanted, **({} if wanted["oid"] in self.hub.objects else {"actions": upload})})
        return {"objects": objects, "transfer": "basic"}

    def lfs_put(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "", "sha256 mismatch")
        self.hub.objects[oid] = self.body
        return b""

    def commit(self, name: str, revision: str) -> Any:
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        return self.hub.commit(name, revision, lines, "create_pr" in self.query, self.user)

    def resolve(self, name: str, revision: str, path: str) -> Any:
        repo = self.hub.repo(name, self.user)
        oid = self.hub.revision(repo, revision)
        blob = repo.commits[oid].get(path)
        if blob is None:
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        etag = blob.sha256 if blob.lfs else blob.oid
        headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(blob.data))}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is None:
            self._send(200, blob.data, headers)
        elif int(span[1]) >= len(blob.data):
            raise Refused(416, "", "out of range")
        else:
            start, stop = int(span[1]), min(int(span[2] or len(blob.data) - 1), len(blob.data) - 1)
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(blob.data)}"
            self._send(206, blob.data[start : stop + 1], headers)


NAME = r"(?P<name>[^/]+/[^/]+)"
REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "yaml"),
    ("POST", rf"/api/datasets/{NAME}/branch/(?P<branch>.+)", "branch"),
    ("GET", rf"/api/datasets/{NAME}", "info"),
    ("GET", rf"/api/datasets/{NAME}/revision/{REVISION}", "info"),
    ("GET", rf"/api/datasets/{NAME}/refs", "refs"),
    ("GET", rf"/api/datasets/{NAME}/tree/{REVISION}(/(?P<path>.+))?", "tree"),
    ("POST", rf"/api/datasets/{NAME}/paths-info/{REVISION}", "paths"),
    ("POST", rf"/api/datasets/{NAME}/preupload/{REVISION}", "preupload"),
    ("POST", rf"/datasets/{NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("POST", rf"/api/datasets/{NAME}/commit/{REVISION}", "commit"),
    ("GET", rf"/datasets/{NAME}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
]
