"""Names, messages and models of strangers: nothing reaches a terminal as it stands, no code runs, no link is followed."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.core.log import logger as builders_logger
from loader import condition
from loader.printable import one_line, printable, printable_lines
from precompute import choose
from precompute.encode.text import open_text_encoder
from precompute.errors import ModelError, UsageError, one_line_errors
from tests.support import tiny_models
from tests.support.finished_folder import write_shards

ESCAPES = "a\x1b]0;pwned\x07\x9b2J\u202ename\r"


def test_an_error_moves_no_cursor_and_tells_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise UsageError(
            f"--x {ESCAPES}: https://me:hunter2@host/a?X-Amz-Signature=SECRET\n  and a second line"
        )
    first, second = capsys.readouterr().err.splitlines()
    assert first.isprintable() and "hunter2" not in first and "SECRET" not in first
    assert second == "  and a second line"


@pytest.mark.parametrize("log", [logging.getLogger("precompute"), builders_logger])
def test_a_log_moves_no_cursor(log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    log.warning("%s: breaks off at %d", ESCAPES, 3)
    (record,) = caplog.records
    assert record.getMessage().isprintable() and record.getMessage().endswith(": breaks off at 3")


def test_printable_escapes_and_a_caption_keeps_its_words() -> None:
    assert printable(ESCAPES).isprintable() and "\\x1b" in printable(ESCAPES)
    assert one_line("a \x00 cat\u202e\n on  a mat ?") == "a cat on a mat ?"
    assert printable_lines("a\nb\x07") == "a\nb\\x07"


def test_a_model_that_wants_its_own_code_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ran = tiny_models.save_decoder_only(tmp_path / "evil"), tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\nfrom transformers import LlamaConfig as Config\nModel = None\n"
    (folder / "evil.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(ModelError) as refused:
        open_text_encoder(f"auto:{folder}", torch.device("cpu"), "float32")
    assert len(str(refused.value).splitlines()) == 1 and "--text-encoder" in str(refused.value)
    assert not ran.exists()


def test_what_a_condition_chose_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    condition.save_chosen(tmp_path / "a.npz", samples=np.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    monkeypatch.setattr(condition.np, "savez", full)
    condition.save_chosen(tmp_path / "b.npz", samples=np.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_select_follows_no_link_beside_its_output(tmp_path: Path) -> None:
    shards, victim = write_shards(tmp_path / "latents"), tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".kept.parquet.tmp").symlink_to(victim)
    choose.count_chosen(choose.Config(str(shards), output=tmp_path / "kept.parquet"))
    assert victim.read_text() == "mine" and (tmp_path / "kept.parquet").stat().st_size > 100
