"""A dataset on the Hub as something to push units to: whole after each commit, and exactly what its manifest lists.

The markers are the truth there too. Each commit stands on the one that was read: if somebody else has committed since, the
Hub is read again and both are merged, so that no unit of another folder or split is ever lost.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from yaml import YAMLError

from builders.archives.read_errors import status_of
from loader.format import MANIFEST, NULL_CAPTION, Manifest, Marker, Split
from loader.null_caption import null_caption_fault
from precompute.commands import command, launched
from precompute.errors import UsageError
from precompute.hub.dataset_card import Known, render_card, source_info
from precompute.hub.local_dataset import Finished, manifest_of_all
from precompute.hub.published import Published, read_published
from precompute.hub.repository import Repository, is_same
from precompute.hub.retry import ASKED, HubPatience, PushError, Refusal
from precompute.report.formatting import file_size
from precompute.shards.destination import Destination
from precompute.verification.check_folder import README, REPORT, SHEET

GO_ON = "look at its discussions, and go on with --revision refs/pr/NUMBER, or again with --create-pr"
# Files of the first commit, and of any; the Hub's gateway gives up on commits of too many.
FIRST, MOST = 200, 2000
CONFLICTS = (409, 412)  # somebody else has committed since


@dataclass(frozen=True)
class Change:
    """One commit to be. units: that it adds. there: units that are on the Hub after it. said: what it does, for its message."""

    units: list[str]
    there: int
    contents: dict[str, bytes]
    stale: list[str]
    said: str


class Target:
    """A dataset repository that shards are pushed to. output: where they lie."""

    def __init__(
        self,
        output: Destination,
        repo: str,
        revision: str | None = None,
        private: bool = False,
        create_pr: bool = False,
        delete_pushed: bool = False,
    ) -> None:
        if create_pr and delete_pushed:
            raise UsageError(
                "--delete-pushed: not with --create-pr, which others may reject; push to a branch"
            )
        if create_pr and revision:
            raise UsageError("--create-pr: not with --revision; a pull request is against main")
        self._repository = Repository(repo, revision)
        self._output, self._private = output, private
        self._create_pr, self._delete_pushed = create_pr, delete_pushed
        self._most_files = FIRST
        self._deleted = dict[str, Marker]()  # units whose tars are gone already, as they were
        self._opening = False  # a pull request was asked for, and no answer came

    @property
    def address(self) -> str:
        return self._repository.address

    def open(self) -> None:
        """Make repository and branch where they are missing. Raises UsageError for flags that cannot be."""
        local = Finished.read(self._output)
        manifest = local.manifest or (manifest_of_all(local.markers) if local.markers else None)
        source = source_info(manifest) if manifest else Known()
        if source.forbids_sharing and not self._private:
            raise UsageError(
                f"--private: the licence of the source says: {source.licence}. Push with --private"
            )
        if self._delete_pushed:
            self._deleted = local.without_tars()
        self._repository.make(self._private)

    def has(self, local: Finished) -> bool:
        """Whether the Hub has all that is finished."""
        return not missing_files(local, read_published(self._repository, local))

    def push(self, local: Finished, final: bool) -> bool:
        """Bring the Hub up to date with what is finished; whether anything was sent. final: even if it is the card alone."""
        sent = set[str]()
        patience = HubPatience(self._repository.name)
        while True:
            hub = read_published(self._repository, local)
            missing = missing_files(local, hub)
            if lost := sorted(sent & missing.keys()):
                self.confirm(local, lost)
            if self._delete_pushed:
                self._delete(local, [stem for stem in local.markers if stem not in missing])
            if not missing and (sent or not final):
                return bool(sent)
            units = local.batch(list(missing), self._most_files)
            change = self._change(local, hub, units)
            if not (change.units or change.contents or change.stale):
                return False
            try:
                self._commit(local, hub, missing, change)
            except ASKED as error:
                self._bear(error, patience)
                continue
            patience = HubPatience(self._repository.name)
            self._most_files = min(MOST, 2 * self._most_files)
            print(f"{self.address}: {change.said}; {change.there} units are there", flush=True)
            if not units:
                return True
            sent.update(units)
            if self._delete_pushed:
                self.confirm(local, units)
                self._delete(local, units)

    def _bear(self, error: Exception, patience: HubPatience) -> None:
        """Wait until the commit may be tried again, or raise PushError. What fits into no time-out is made smaller."""
        status = status_of(error)
        if status in (*CONFLICTS, 429):  # an answer: no pull request was opened
            self._opening = False
        if status in CONFLICTS:
            patience.pause(error)
            return
        if status == 504:
            self._most_files = max(1, self._most_files // 2)
        patience.bear(error)

    # --- one commit ---

    def _change(self, local: Finished, hub: Published, units: list[str]) -> Change:
        """What a commit of these units is made of: them, the manifest of all that is then there, card and companions."""
        markers = {**hub.markers, **{stem: local.markers[stem] for stem in units}}
        manifest = manifest_of_all(markers)
        for planned in (hub.manifest, local.manifest):
            for name, split in planned.splits.items() if planned else ():
                manifest.splits.setdefault(name, Split(split.plan, 0, (), {}))
        manifest, wanted = _beside(local.output, manifest, hub.manifest)
        sheet = SHEET in wanted or SHEET in hub.snapshot.files
        wanted[README] = _card(self._repository, manifest, hub, sheet)
        contents = {
            name: data for name, data in wanted.items() if not is_same(hub.snapshot.files.get(name), data)
        }
        stale = hub.stale(local, markers, manifest)
        size = sum(local.size(stem) for stem in units)
        said = f"Add {len(units)} units, {size / 1e9:.2f} GB" if units else "Update manifest and card"
        said += f", delete {len(stale)} stale files" if stale else ""
        return Change(units, len(markers), contents, stale, said)

    def _commit(self, local: Finished, hub: Published, missing: dict[str, list[str]], change: Change) -> None:
        opens_pr = self._create_pr and self._repository.revision is None
        if opens_pr and self._opening:
            raise PushError(
                f"{self.address}: the connection was lost while the pull request was opened; {GO_ON}"
            )
        for name, data in sorted(change.contents.items()):
            print(f"{self.address}: beside the shards: {name}, {file_size(len(data))}", flush=True)
        sent = {stem: missing[stem] for stem in change.units}
        with local.output.here(name for names in sent.values() for name in names) as here:
            operations = [
                *_additions(local, sent, here),
                *(CommitOperationAdd(name, data) for name, data in change.contents.items()),
                *(CommitOperationDelete(path, is_folder=False) for path in change.stale),
            ]
            self._opening = opens_pr
            self._repository.commit(operations, change.said, hub.snapshot.head, opens_pr)

    # --- deleting here ---

    def confirm(self, local: Finished, stems: list[str]) -> None:
        """Raises PushError unless the Hub says that it has every file of these units."""
        missing = missing_files(local, read_published(self._repository, local))
        for stem in stems:
            if stem in missing:
                raise PushError(
                    f"{missing[stem][0]}: the Hub has something else. Nothing was deleted; run the same command again"
                )

    def _delete(self, local: Finished, stems: list[str]) -> None:
        """Remove the tars of units that the Hub has, but for those done again since `local` was read."""
        for stem in stems:
            marker = local.markers[stem]
            if self._deleted.get(stem) == marker or not local.is_current(stem):
                continue
            for shard in marker.shards:
                local.output.delete(f"{shard.name}.tar")
            self._deleted[stem] = marker


def _beside(
    output: Destination, manifest: Manifest, there: Manifest | None
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest with the hash of null_caption.npz, and the files beside the shards. Raises Refusal where that file is not
    what belongs to the shards."""
    found = ((name, output.get(name)) for name in (NULL_CAPTION, SHEET, REPORT))
    files = {name: data for name, data in found if data is not None}
    null = there.null_caption if there else None
    if NULL_CAPTION in files:
        if fault := null_caption_fault(files[NULL_CAPTION], manifest.fields):
            cure = f"Remove it and run `{launched()}` again: it is made anew"
            raise Refusal(f"{output}/{NULL_CAPTION}: {fault}. {cure}")
        null = hashlib.sha256(files[NULL_CAPTION]).hexdigest()
    manifest = replace(manifest, null_caption=null)
    return manifest, {**files, MANIFEST: manifest.to_json().encode()}


def _additions(
    local: Finished, missing: dict[str, list[str]], here: Mapping[str, Path]
) -> Iterator[CommitOperationAdd]:
    """The files of some units, each held against the hash that its marker has. here: where they lie on a disk."""
    for stem, names in missing.items():
        hashes = local.files(stem)
        for name in names:
            if name not in here:
                raise PushError(
                    f"{local.output}/{name}: neither here nor on the Hub. Remove {local.output}/{stem}.json and run `{launched()}` again"
                )
            addition = CommitOperationAdd(local.hub_path(stem, name), str(here[name]))
            if hashes[name] is not None and addition.upload_info.sha256.hex() != hashes[name]:
                raise PushError(
                    f"{local.output}/{name}: not what was written (its sha256 differs). Run `{command('verify', local.output)}`"
                )
            yield addition


def missing_files(local: Finished, hub: Published) -> dict[str, list[str]]:
    """The files that the Hub has not, or has otherwise, by unit. Markers that differ in their timings alone are the same."""
    missing = {}
    for stem, marker in local.markers.items():
        there = hub.markers.get(stem)
        same = there is not None and replace(there, timings={}) == replace(marker, timings={})
        names = [
            name
            for name, sha256 in local.files(stem).items()
            if not (same if sha256 is None else _has(hub, local, stem, name, sha256))
        ]
        if names:
            missing[stem] = names
    return missing


def _has(hub: Published, local: Finished, stem: str, name: str, sha256: str) -> bool:
    """Whether the Hub has a file: by its sha256, or by its contents where the Hub keeps it as text."""
    there = hub.snapshot.files.get(local.hub_path(stem, name))
    if there is not None and there.lfs is None:
        data = local.output.get(name)
        return data is not None and is_same(there, data)
    return there is not None and bool(there.lfs.sha256 == sha256)


def _card(repository: Repository, manifest: Manifest, hub: Published, sheet: bool) -> bytes:
    """The card, around what people wrote. Raises Refusal where what is there cannot be read as a card."""
    there = repository.read(hub.snapshot, README)
    try:
        return render_card(manifest, repository.name, there.decode("utf-8"), sheet).encode()
    except (ValueError, YAMLError) as error:
        raise Refusal(
            f"{repository.name}: {README} there has no header that can be read ({str(error).splitlines()[0]}). "
            "Mend it there, or remove it, and run the same command again"
        ) from error
