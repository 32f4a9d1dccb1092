"""Shards to the Hub: resumable, in few commits, each of which leaves a whole dataset there.

    python precompute/push.py latents/cc12m USER/cc12m-latents
    python precompute/push.py latents/cc12m USER/cc12m-latents --follow --delete-pushed     # while precompute runs

A commit holds some finished units and the manifest of exactly the units that are then there, so a reader never meets a
manifest that names a missing shard. What is on the Hub already, by its sha256, is not sent again: after any failure run
the same command again. The token comes from `hf auth login` or HF_TOKEN.
"""

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from huggingface_hub import CommitOperationAdd, HfApi, get_token, hf_hub_download
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from loader.format import MANIFEST, NULL_CAPTION, Manifest, Marker, Split, recipe_differences
from precompute.card import Known, render_card, source_info
from precompute.checks import README, REPORT, SHEET
from precompute.errors import UsageError, one_line_errors
from precompute.hub import PushError, ask
from precompute.shards import manifest_of, marker_paths, read_marker

COMMIT_BYTES, COMMIT_UNITS = 50 * 10**9, 500  # of one commit; the Hub takes up to 25,000 files
GO_ON = "look at its discussions, and go on with --revision refs/pr/NUMBER, or again with --create-pr"
POLL = 2.0  # seconds between looks for new units with --follow


@dataclass(frozen=True)
class Config:
    output: tyro.conf.Positional[Path]
    """Folder with the shards."""

    repo: tyro.conf.Positional[str]
    """Dataset on the Hub, USER/REPO; made if it is not there."""

    private: bool = False
    """Make the dataset private. One that is there already, and public, is refused."""

    revision: str | None = None
    """Branch to push to, made if it is not there. Default: main."""

    create_pr: bool = False
    """Open a pull request rather than push to the branch."""

    follow: bool = False
    """Push finished units while precompute runs, and end when all are there."""

    every: float = 300.0
    """Seconds between commits with --follow; the Hub allows about a hundred an hour."""

    delete_pushed: bool = False
    """Delete each local tar once the Hub has it, by its sha256. Markers and sidecars stay, so precompute goes on."""


def push(config: Config, stop: threading.Event | None = None) -> str:
    """Push, and return the address. stop: ends a --follow early, once what is finished by then is pushed."""
    target = Target(config)
    target.open()
    stop, last = stop or threading.Event(), float("-inf")
    while True:
        stopping = stop.is_set()  # before looking, so that nothing finished by then is left
        began = time.monotonic()
        local = Local.read(config.output)
        looked = time.monotonic() - began
        done = local.complete or stopping or not config.follow
        due = done or time.monotonic() - last >= config.every
        if local.markers and due and target.push(local, final=done):
            last = time.monotonic()
        if done:
            break
        stop.wait(max(POLL, 20 * looked))  # to read thousands of markers takes a while
    if not local.markers:
        raise PushError(
            f"{config.output}: no unit is finished yet; run precompute/run.py first, or push with --follow"
        )
    return target.address


# --- what is here -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Local:
    """The output folder. markers: by stem, of finished units. manifest: of all that is planned; None before the first."""

    folder: Path
    markers: dict[str, Marker]
    manifest: Manifest | None

    @classmethod
    def read(cls, folder: Path) -> "Local":
        """Raises UsageError or FormatError where it is no folder of shards."""
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder. Name the --output of precompute/run.py")
        path = folder / MANIFEST
        manifest = Manifest.from_json(path.read_bytes()) if path.exists() else None
        return cls(folder, {path.stem: read_marker(path) for path in marker_paths(folder)}, manifest)

    @property
    def complete(self) -> bool:
        """Whether every unit of every planned split is finished."""
        if self.manifest is None or not self.markers:
            return False
        done = [marker.split for marker in self.markers.values()]
        return all(done.count(name) >= split.plan["units"] for name, split in self.manifest.splits.items())

    def files(self, stem: str) -> dict[str, str | None]:
        """File -> sha256 of one unit; None for the marker, which is small and compared as it is."""
        shards = self.markers[stem].shards
        tars = {f"{shard.name}.tar": shard.sha256 for shard in shards if shard.samples}
        return {
            **tars,
            **{f"{shard.name}.parquet": shard.parquet_sha256 for shard in shards},
            f"{stem}.json": None,
        }

    def size(self, stem: str) -> int:
        return sum(shard.bytes for shard in self.markers[stem].shards)


# --- what is there ----------------------------------------------------------------------------------------------------


class Target:
    """A dataset repository at a revision."""

    def __init__(self, config: Config) -> None:
        self._config, self._api = config, HfApi()
        self._revision = config.revision

    @property
    def address(self) -> str:
        tree = f"/tree/{self._revision}" if self._revision else ""
        return f"{self._api.endpoint}/datasets/{self._config.repo}{tree}"

    def open(self) -> None:
        """Make repository and branch where they are missing. Raises UsageError for flags that cannot be."""
        config = self._config
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", config.repo):
            raise UsageError(f"{config.repo}: write the dataset as USER/REPO")
        if config.create_pr and config.delete_pushed:
            raise UsageError(
                "--delete-pushed: not with --create-pr, which others may reject; push to a branch"
            )
        if config.create_pr and config.revision:
            raise UsageError("--create-pr: not with --revision; a pull request is against main")
        if get_token() is None:
            raise PushError(
                f"{config.repo}: no token. Run `hf auth login`, or set HF_TOKEN to one that may write"
            )
        local = Local.read(config.output)
        manifest = local.manifest or (manifest_of_all(local.markers) if local.markers else None)
        source = source_info(manifest) if manifest else Known()
        if source.forbids_sharing and not config.private:
            raise UsageError(
                f"--private: the licence of the source says: {source.licence}. Push with --private"
            )
        ask(
            self._config.repo,
            lambda: self._api.create_repo(
                config.repo, repo_type="dataset", private=config.private or None, exist_ok=True
            ),
        )
        if config.private and not ask(config.repo, lambda: self._api.dataset_info(config.repo)).private:
            raise UsageError(
                f"--private: {config.repo} is there already, and public. Make it private in its settings, or name another"
            )
        if config.revision and not config.revision.startswith("refs/"):
            branch = config.revision
            ask(
                self._config.repo,
                lambda: self._api.create_branch(
                    config.repo, repo_type="dataset", branch=branch, exist_ok=True
                ),
            )

    def push(self, local: Local, final: bool) -> bool:
        """Bring the Hub up to date with what is finished; whether anything was sent. final: even if it is the card alone."""
        remote = self._list()
        before = self._remote_manifest(local, remote)
        missing = {}
        for stem in local.markers:
            files = [
                name
                for name, sha256 in local.files(stem).items()
                if not _same(local.folder, name, sha256, remote)
            ]
            if files:
                missing[stem] = files
            elif self._config.delete_pushed:
                self._delete(local, [stem])
        there = [stem for stem in local.markers if stem not in missing]
        sent = False
        for batch in _batches(local, list(missing)):
            there += batch
            self._commit(local, {stem: missing[stem] for stem in batch}, there, before, remote)
            if self._config.delete_pushed:
                self._confirm(local, batch)
                self._delete(local, batch)
            sent = True
        if final and not sent:
            sent = self._commit(local, {}, there, before, remote)
        return sent

    # --- one commit ---

    def _commit(
        self,
        local: Local,
        missing: dict[str, list[str]],
        there: list[str],
        before: Manifest | None,
        remote: dict[str, RepoFile],
    ) -> bool:
        """Commit the units in `missing` and what goes with them; False where nothing has changed."""
        manifest = manifest_of_all({stem: local.markers[stem] for stem in sorted(there)})
        for name, split in before.splits.items() if before else ():  # pushed from another folder
            manifest.splits.setdefault(name, split)
        for name, split in local.manifest.splits.items() if local.manifest else ():  # planned
            manifest.splits.setdefault(name, Split(split.plan, 0, (), {}))
        contents: dict[str, bytes] = {MANIFEST: manifest.to_json().encode()}
        for name in (NULL_CAPTION, SHEET, REPORT):
            if (local.folder / name).exists():
                contents[name] = (local.folder / name).read_bytes()
        sheet = SHEET in contents or SHEET in remote
        contents[README] = render_card(
            manifest, self._config.repo, self._read(README, remote), sheet
        ).encode()
        units, size = len(missing), sum(local.size(stem) for stem in missing)
        if not missing and all(_is(remote.get(name), data) for name, data in contents.items()):
            return False
        message = f"Add {units} units, {size / 1e9:.2f} GB" if units else "Update manifest and card"
        opens_pr = self._config.create_pr and self._revision is None
        tried = False

        def commit() -> None:
            nonlocal tried
            if tried and opens_pr:
                raise PushError(
                    f"{self.address}: the connection was lost while the pull request was opened; {GO_ON}"
                )
            if tried and _is(self._list().get(MANIFEST), contents[MANIFEST]):
                return  # the Hub had taken it before the connection was lost
            tried = True
            info = self._api.create_commit(
                self._config.repo,
                [*self._additions(local, missing), *(CommitOperationAdd(n, d) for n, d in contents.items())],
                commit_message=message,
                repo_type="dataset",
                revision=self._revision,
                create_pr=opens_pr,
            )
            if info.pr_revision:
                self._revision = info.pr_revision

        ask(self._config.repo, commit)
        print(f"{self.address}: {message}; {len(there)} units are there", flush=True)
        return True

    def _additions(self, local: Local, missing: dict[str, list[str]]) -> Iterator[CommitOperationAdd]:
        """The files of some units, each held against the hash that its marker has."""
        for stem, names in missing.items():
            hashes = local.files(stem)
            for name in names:
                path = local.folder / name
                if not path.exists():
                    raise PushError(
                        f"{path}: neither here nor on the Hub. Remove {stem}.json and run precompute/run.py again"
                    )
                addition = CommitOperationAdd(name, str(path))
                if hashes[name] is not None and addition.upload_info.sha256.hex() != hashes[name]:
                    raise PushError(
                        f"{path}: not what was written (its sha256 differs). Run precompute/verify.py"
                    )
                yield addition

    def _confirm(self, local: Local, stems: list[str]) -> None:
        """Raises PushError unless the Hub says that it has every file of these units."""
        remote = self._list()
        for stem in stems:
            for name, sha256 in local.files(stem).items():
                if not _same(local.folder, name, sha256, remote):
                    raise PushError(
                        f"{name}: the Hub has something else. Nothing was deleted; run the same command again"
                    )

    def _delete(self, local: Local, stems: list[str]) -> None:
        for stem in stems:
            for shard in local.markers[stem].shards:
                (local.folder / f"{shard.name}.tar").unlink(missing_ok=True)

    # --- reading the Hub ---

    def _list(self) -> dict[str, RepoFile]:
        def tree() -> dict[str, RepoFile]:
            entries = self._api.list_repo_tree(
                self._config.repo, repo_type="dataset", revision=self._revision
            )
            return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        return ask(self._config.repo, tree)

    def _read(self, name: str, remote: dict[str, RepoFile]) -> str:
        if name not in remote:
            return ""

        def read() -> str:
            revision = self._revision or "main"
            path = hf_hub_download(self._config.repo, name, repo_type="dataset", revision=revision)
            return Path(path).read_text(encoding="utf-8")

        return ask(self._config.repo, read)

    def _remote_manifest(self, local: Local, remote: dict[str, RepoFile]) -> Manifest | None:
        """The manifest that is there. Raises PushError where it is of another recipe or plan."""
        text = self._read(MANIFEST, remote)
        if not text:
            return None
        theirs, ours = Manifest.from_json(text), manifest_of_all(local.markers)
        wrong = recipe_differences(theirs.recipe, ours.recipe)
        for name in theirs.splits.keys() & ours.splits.keys():
            wrong += recipe_differences(theirs.splits[name].plan, ours.splits[name].plan, "plan")
        if wrong:
            lines = "\n  ".join(wrong)
            raise PushError(
                f"{self._config.repo}: it holds shards of another recipe:\n  {lines}\nName another dataset or --revision"
            )
        return theirs


def manifest_of_all(markers: dict[str, Marker]) -> Manifest:
    """The manifest of markers that share a recipe."""
    first = next(iter(markers.values()))
    for stem, marker in markers.items():
        wrong = recipe_differences(first.recipe, marker.recipe)
        if wrong:
            raise PushError(f"{stem}.json: made by another recipe ({wrong[0]}). Keep one recipe in a folder")
    return manifest_of(first.recipe, first.fields, markers.values())


def _batches(local: Local, stems: list[str]) -> Iterator[list[str]]:
    """Units in order, as many as one commit should hold."""
    batch, size = list[str](), 0
    for stem in stems:
        if batch and (len(batch) == COMMIT_UNITS or size + local.size(stem) > COMMIT_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(stem)
        size += local.size(stem)
    if batch:
        yield batch


def _same(folder: Path, name: str, sha256: str | None, remote: dict[str, RepoFile]) -> bool:
    """Whether the Hub has this file: by the sha256 that its marker has, or else by its contents."""
    there = remote.get(name)
    if there is None:
        return False
    if sha256 is not None and there.lfs is not None:
        return bool(there.lfs.sha256 == sha256)
    return _is(there, (folder / name).read_bytes()) if (folder / name).exists() else False


def _is(there: RepoFile | None, data: bytes) -> bool:
    if there is None or there.size != len(data):
        return False
    if there.lfs is not None:
        return bool(CommitOperationAdd("x", data).upload_info.sha256.hex() == there.lfs.sha256)
    return bool(there.blob_id == git_hash(data))


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    with one_line_errors():
        print(push(config))


if __name__ == "__main__":
    main()
