"""Whose keys a request is signed with: those of a profile, or nobody's; by run, by verify and by the loader."""

from pathlib import Path

import pytest

from loader import make_loader
from loader.store_options import storage_options
from precompute import run, verify
from tests.precompute.cloud.test_store_runs import check, config
from tests.support.faulty_store import FaultyStore

KEY = "key-of-the-profile"


@pytest.fixture
def signed(store: FaultyStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What each request says of its keys; an environment that has none, but a file of profiles."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    profiles = tmp_path / "credentials"
    profiles.write_text(f"[mine]\naws_access_key_id = {KEY}\naws_secret_access_key = x\nregion = us-east-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profiles))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    found: list[str] = []
    store.front.answer = lambda environ: found.append(environ.get("HTTP_AUTHORIZATION", ""))
    return found


def is_whole(url: str, options: tuple[str, ...]) -> bool:
    return verify.run(verify.Config(url, store_option=options)) == 0


def keys(place: str, options: tuple[str, ...] = ()) -> list[str]:
    """Those that the loader gives."""
    batches = make_loader(
        place,
        2,
        extras="key",
        shuffle=False,
        drop_last=False,
        storage_options=storage_options(place, options) or None,
    )
    found = [key for batch in batches for key in batch["key"]]
    batches.close()
    return found


def test_a_profile(store: FaultyStore, signed: list[str], raw: Path, plain: Path) -> None:
    url, options = "s3://bucket/profile/run", (f"endpoint={store.endpoint}", "profile=mine")
    run.run(config(url, raw, store_option=options))
    written = len(signed)
    assert is_whole(url, options) and keys(url, options) == keys(str(plain))
    assert len(signed) > written > 0 and all(f"Credential={KEY}/" in one for one in signed)
    store.calm()
    check(store, "profile/run", plain)


def test_a_bucket_that_all_may_read(store: FaultyStore, signed: list[str], plain: Path) -> None:
    """moto refuses one without keys what is not public."""
    options = (f"endpoint={store.endpoint}", "region=us-east-1", "anonymous=true")
    private = store.upload(plain, "private")
    assert verify.run(verify.Config(private, store_option=options)) == 3
    store.client.put_bucket_acl(Bucket="bucket", ACL="public-read")
    url = store.upload(plain, "public")
    signed.clear()
    assert is_whole(url, options) and keys(url, options) == keys(str(plain))
    assert signed and not any(signed)
