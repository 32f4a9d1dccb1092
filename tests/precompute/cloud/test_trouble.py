"""How long a store that does not answer is waited for; and that one of the tests is nobody's but theirs."""

import pytest

from builders.archives import backoff
from precompute.cloud.trouble import StoreError, Trouble
from tests.support.faulty_store import FaultyStore


def test_patience_that_was_in_vain_is_there_again_once_the_store_has_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = [False, True, True]
    monkeypatch.setattr(backoff.Patience, "wait", lambda *given: left.pop(0))
    trouble, error = Trouble("--output s3://bucket"), OSError("status code: 503")
    for _ in range(2):  # another thread does not wait as long again
        with pytest.raises(StoreError):
            trouble.wait(backoff.Patience(), error)
    assert len(left) == 2
    trouble.passed()
    trouble.wait(backoff.Patience(), error)
    assert len(left) == 1


@pytest.mark.parametrize(
    "said, expected",
    [
        ("Generic S3 error: Error performing HEAD http://x/a in 2ms - Server returned non-2xx status code: 400 Bad Request: ", "expired"),
        ("Generic GCS error: Error performing PUT http://x/a in 2ms - Server returned non-2xx status code: 400 Bad Request: {}", "400 Bad Request"),
    ],
)  # fmt: skip
def test_an_answer_without_a_code(said: str, expected: str) -> None:
    """S3's to a HEAD, which has no body, is that of credentials; what others mean by it nobody knows."""
    assert expected in str(Trouble("gs://bucket/x").explained(OSError(said)))


def test_a_store_of_the_tests_begins_empty() -> None:
    """Else a prefix that two modules share makes the second one's marker another process's, in whatever order they run."""
    for _ in range(2):
        store = FaultyStore()
        assert store.objects("shared") == {}
        store.client.put_object(Bucket="bucket", Key="shared/train-00000.json", Body=b"m")
        store.close()
