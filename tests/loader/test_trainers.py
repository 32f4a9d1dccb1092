"""Trainers that nobody here wrote: each key of an epoch exactly once, every epoch whole, and a checkpoint goes on where it was."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from loader import make_loader

ROOT = Path(__file__).resolve().parents[2]
OPTIONS: dict[str, Any] = {"resolution": 256, "text_encoders": [""], "extras": ["key"], "seed": 3}
EPOCHS = 4
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # theirs
    pytest.mark.timeout(600),
]


def whole_epochs(keys: list[str], epochs: int = EPOCHS) -> bool:
    """Whether the keys are so many epochs of the hundred samples, each once."""
    cut = [keys[at : at + 100] for at in range(0, len(keys), 100)]
    return len(cut) == epochs and all(len(set(epoch)) == 100 for epoch in cut)


def straight(shards: Path, epochs: int = EPOCHS) -> list[str]:
    """What a loop without any trainer sees."""
    batches = make_loader(shards, 10, **OPTIONS)
    return [key for _ in range(epochs) for batch in batches for key in batch["key"]]


# --- Lightning --------------------------------------------------------------------------------------------------------


def lightning_trainer(folder: Path, **options: Any) -> Any:
    import lightning

    return lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        **{
            "max_epochs": EPOCHS,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
    )


def lightning_module() -> Any:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
            self.seen: list[str] = []
            self.validated: list[list[str]] = []

        def training_step(self, batch: Any, index: int) -> Any:
            self.seen += batch["key"]
            return self.layer(batch["image_latents"].float().mean((2, 3))).mean()

        def on_validation_epoch_start(self) -> None:
            self.validated.append([])

        def validation_step(self, batch: Any, index: int) -> None:
            self.validated[-1] += batch["key"]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e-3)

    return Module()


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_trains_on_whole_epochs(shards: Path, tmp_path: Path, workers: int) -> None:
    """Its sanity check and three batches of each validation are the same ones each time."""
    module = lightning_module()
    train = make_loader(shards, 10, num_workers=workers, **OPTIONS)
    valid = make_loader(shards, 8, shuffle=False, from_start=True, drop_last=False, **OPTIONS)
    trainer = lightning_trainer(tmp_path, limit_val_batches=3, num_sanity_val_steps=2)
    trainer.fit(module, train, valid)
    train.close()
    assert trainer.global_step == 40 and module.seen == straight(shards)
    sanity, *rest = module.validated
    assert len(rest) == EPOCHS and all(keys == rest[0] for keys in rest)
    assert len(set(rest[0])) == 24 and sanity == rest[0][:16]


def test_lightning_resumes_in_the_middle_of_an_epoch(shards: Path, tmp_path: Path) -> None:
    """It keeps the loader's state in its own checkpoint."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=13, save_top_k=-1)
    first = lightning_module()
    trainer = lightning_trainer(tmp_path, callbacks=[saving], enable_checkpointing=True)
    trainer.fit(first, make_loader(shards, 10, **OPTIONS))
    assert first.seen == straight(shards)
    second = lightning_module()
    trainer = lightning_trainer(tmp_path)
    trainer.fit(second, make_loader(shards, 10, **OPTIONS), ckpt_path=tmp_path / "step=13.ckpt")
    assert second.seen == first.seen[130:]


LIGHTNING_SCRIPT = """
import json, os, sys, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from loader import make_loader
from tests.loader.test_trainers import OPTIONS, lightning_module, lightning_trainer

if __name__ == "__main__":
    shards, out = Path(sys.argv[1]), Path(sys.argv[2])
    train, module = make_loader(shards, 5, **OPTIONS), lightning_module()
    trainer = lightning_trainer(out, devices=2, strategy="ddp")
    trainer.fit(module, train)
    (out / f"{trainer.global_rank}.json").write_text(json.dumps([len(train), module.seen]))
"""


def test_lightning_starts_a_second_process_by_itself(shards: Path, tmp_path: Path) -> None:
    """Each process makes its loader before the process group, one of them with no word of the other."""
    script = tmp_path / "script.py"
    script.write_text(LIGHTNING_SCRIPT)
    run([sys.executable, script, shards, tmp_path])
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [length for length, _ in results] == [10, 10]
    check_ranks([keys for _, keys in results])


def run(command: list[Any]) -> None:
    environment = {name: value for name, value in os.environ.items() if "RANK" not in name}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=ROOT, timeout=540, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


def check_ranks(ranks: list[list[str]]) -> None:
    """Equally many on each, and over all of them each epoch whole."""
    size = 100 // len(ranks)
    assert {len(keys) for keys in ranks} == {size * EPOCHS}
    for epoch in range(EPOCHS):
        assert len({key for keys in ranks for key in keys[epoch * size : (epoch + 1) * size]}) == 100


# --- transformers -----------------------------------------------------------------------------------------------------


class HeldByTransformers(torch.nn.Module):
    """Its one output is a loss; it notes what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.seen: list[str] = []

    def forward(self, image_latents: Any, key: list[str], **_: Any) -> dict[str, Any]:
        self.seen += key
        return {"loss": self.layer(image_latents.float().mean((2, 3))).mean()}


def transformers_trainer(shards: Path, folder: Path, **options: Any) -> Any:
    import transformers

    class Trainer(transformers.Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return make_loader(shards, 10, **OPTIONS)

    arguments = transformers.TrainingArguments(
        str(folder),
        **{
            "num_train_epochs": EPOCHS,
            "report_to": [],
            "use_cpu": True,
            "remove_unused_columns": False,
            "disable_tqdm": True,
            "logging_strategy": "no",
            "save_strategy": "no",
            **options,
        },
    )
    return Trainer(HeldByTransformers(), arguments)


def test_transformers_trains_on_whole_epochs(shards: Path, tmp_path: Path) -> None:
    trainer = transformers_trainer(shards, tmp_path)
    trainer.train()
    assert trainer.state.global_step == 40 and trainer.model.seen == straight(shards)


def test_transformers_resumes_in_the_middle_of_an_epoch(shards: Path, tmp_path: Path) -> None:
    """It skips the batches that it had, by way of accelerate; nothing is read for that."""
    saving = {"save_strategy": "steps", "save_steps": 13}
    transformers_trainer(shards, tmp_path, max_steps=13, **saving).train()
    again = transformers_trainer(shards, tmp_path, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))
    assert again.model.seen == straight(shards)[130:]


# --- accelerate -------------------------------------------------------------------------------------------------------


def test_accelerate_skips_the_first_batches_without_reading_them(shards: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    batches = accelerator.prepare(make_loader(shards, 10, **OPTIONS))
    for epoch, skipped in enumerate((3, 0, 9, 1)):
        rest = accelerator.skip_first_batches(batches, skipped)
        assert len(rest) == 10 - skipped
        keys = [key for batch in rest for key in batch["key"]]
        assert keys == straight(shards)[epoch * 100 + skipped * 10 : (epoch + 1) * 100]
    assert batches.stats()["samples"] == 400 - 130
    assert batches.state_dict()["epoch"] == 4


ACCELERATE_SCRIPT = """
import json, sys, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from accelerate import Accelerator
from loader import make_loader
from tests.loader.test_trainers import EPOCHS, OPTIONS

shards, out = Path(sys.argv[1]), Path(sys.argv[2])
train = make_loader(shards, 5, **OPTIONS)
accelerator = Accelerator(cpu=True)
train = accelerator.prepare(train)
accelerator.register_for_checkpointing(train)
seen = []
for epoch in range(EPOCHS):
    for step, batch in enumerate(train):
        seen += batch["key"]
        if epoch == 1 and step == 3:
            accelerator.save_state(str(out / "state"))
            accelerator.wait_for_everyone()  # the main process writes what all of them read
            wrong = next(iter(train))
            accelerator.load_state(str(out / "state"))
            break
    if epoch == 1:
        for batch in train:
            seen += batch["key"]
(out / f"{accelerator.process_index}.json").write_text(json.dumps(seen))
accelerator.end_training()
"""


def test_accelerate_on_two_processes_by_torchrun(shards: Path, tmp_path: Path) -> None:
    """gloo; the loader is made first, and in the second epoch a state is saved and loaded."""
    script = tmp_path / "script.py"
    script.write_text(ACCELERATE_SCRIPT)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    run([sys.executable, *launch, script, shards, tmp_path])
    check_ranks([json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)])


# --- torchdata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_goes_through_whole_epochs(shards: Path, workers: int) -> None:
    """Also behind a state that was taken in the middle: the rest of that epoch, then the next ones."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    from loader import LatentDataset

    def make() -> Any:
        return StatefulDataLoader(
            LatentDataset(shards, 10, **OPTIONS),
            batch_size=None,
            num_workers=workers,
            persistent_workers=bool(workers),
        )

    first, keys = make(), []
    for epoch in range(2):
        for step, batch in enumerate(first):
            keys += batch["key"]
            if epoch == 1 and step == 3:
                state = first.state_dict()
                break
    second = make()
    second.load_state_dict(state)
    for _ in range(EPOCHS - 1):
        keys += [key for batch in second for key in batch["key"]]
    assert keys == straight(shards)
    assert Counter(keys) == dict.fromkeys(set(keys), EPOCHS)
