"""Find a model's files in a folder or on the Hub, and say exactly which weights they are."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

from precompute.errors import ModelError

logger = logging.getLogger("precompute")

# Variants of the weights, as model.fp16.safetensors: for repositories that have no others.
VARIANTS = ("fp16", "bf16")
TOKENIZER_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
# What begins with _, as _diffusers_version does, is about libraries too.
ABOUT_LIBRARIES = ("transformers_version", "torch_dtype", "dtype")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
# NAME:ID of a package that is installed here, openclip's among them; local-dir is what OpenCLIP calls a folder.
PACKAGED = re.compile(r"[A-Za-z0-9_-]+:(?!local-dir)[A-Za-z0-9][\w.:/-]*", re.ASCII)
PANGRAM = "Zwölf Boxkämpfer jagen Viktor: 1,234 don't-stop (café) 猫 in a cup!"


@dataclass(frozen=True)
class Location:
    """A model in a folder (revision None) or in a Hub repository at a commit; config is its `config.json`."""

    name: str
    subfolder: str
    revision: str | None
    config: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`, the name aside."""
        return {"subfolder": self.subfolder, "revision": self.revision}

    def recipe(self, model: torch.nn.Module) -> dict[str, Any]:
        """What identifies the values this model computes. A folder's own path is no part of it."""
        name = Path(self.name).name if self.revision is None else self.name
        return {
            "model": name,
            "subfolder": self.subfolder,
            "revision": self.revision,
            "weights": weights_hash(model),
            "config": self._config_hash(),
        }

    def tokenizer_place(self, folder: str) -> str:
        """Folder on this disk that holds the tokenizer's files in its subfolder `folder`; of a Hub repository its snapshot.

        By the Hub id transformers asks for a `config.json` beside the tokenizer, which no pipeline has: without a network, and
        without the cache's note that there is none, that fails.
        """
        if self.revision is None:
            return self.name
        files = [f"{folder}/*"] if folder else list(TOKENIZER_FILES)
        return str(huggingface_hub.snapshot_download(self.name, revision=self.revision, allow_patterns=files))

    def _config_hash(self) -> str:
        """Hash what its `config.json` says of the model, and not of the libraries that wrote it."""
        about = {k: v for k, v in self.config.items() if not k.startswith("_") and k not in ABOUT_LIBRARIES}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def recorded_name(spec: Mapping[str, Any]) -> str | None:
    """What to open of a model that a recipe, maybe a stranger's, names: `toy`, NAME:ID of a package, or a Hub id at its commit.

    None for all else: a folder, of which a recipe has the last name alone, or an address; only the user names those.
    """
    model, revision = spec.get("model"), spec.get("revision", "")
    if not isinstance(model, str) or not isinstance(revision, str):
        return None
    if not revision:
        return model if model == "toy" or (PACKAGED.fullmatch(model) and ".." not in model) else None
    return f"{model}@{revision}" if HUB_ID.fullmatch(model) and COMMIT.fullmatch(revision) else None


def locate_model(flag: str, name: str, subfolders: Sequence[str]) -> Location:
    """Find where `name`'s `config.json` is: in the first of `subfolders` that has one, else at the top.

    name: a folder, or a Hub id with an optional `@REVISION` (branch, tag or commit).
    Raises ModelError, which starts with `flag`, where there is none.
    """
    folder = Path(name).expanduser()
    if folder.exists() or name.startswith((".", "/", "~")):
        for subfolder in (*subfolders, ""):
            path = folder / subfolder / "config.json"
            if path.is_file():
                return Location(str(folder), subfolder, None, _read_config(flag, path))
        looked = ", ".join(str(Path(s) / "config.json") for s in (*subfolders, ""))
        raise ModelError(
            f"{flag} {name}: no model in that folder; looked for {looked}. Name a folder that has one"
        )
    repository, _, revision = name.partition("@")
    # diffusers and transformers would open it under the Hub's name.
    if repository and Path(repository).exists():
        raise ModelError(
            f"{flag} {name}: a folder {repository} lies in the working directory and would be taken for it; give {flag} "
            f"./{repository}, or start in another directory"
        )
    unreachable: Exception | None = None
    for subfolder in (*subfolders, ""):
        try:
            file = huggingface_hub.hf_hub_download(
                repository,
                "config.json",
                subfolder=subfolder or None,
                revision=revision or None,
                local_files_only=unreachable is not None,
            )
        except LocalEntryNotFoundError as error:  # what is in the cache may lie elsewhere
            unreachable = unreachable or error
            continue
        except EntryNotFoundError:
            continue
        except (HFValidationError, OSError) as error:
            raise ModelError(
                f"{flag} {name}: neither a folder nor a model on the Hub that you may read ({in_a_line(error)}). "
                "Check the name; for a gated or private one run `hf auth login`"
            ) from error
        commit = re.search(r"snapshots/([0-9a-f]{40})/", Path(file).as_posix())
        return Location(
            repository, subfolder, commit[1] if commit else revision or None, _read_config(flag, Path(file))
        )
    if unreachable is not None:
        raise ModelError(
            f"{flag} {name}: not in the local cache, and the Hub cannot be reached ({_cause_of(unreachable)}). Check the name, "
            "or name a folder that has the model"
        ) from unreachable
    raise ModelError(
        f"{flag} {name}: the repository has no config.json, at the top or in {', '.join(subfolders)}"
    )


def load_weights(flag: str, load: Callable[..., Any], unused: str = "") -> tuple[Any, str | None]:
    """The model, and the variant of its weights where it has no plain ones; load takes what from_pretrained does.

    unused: in the names of weights that may be missing. Raises what `load` raises for the plain weights, and ModelError where
    some are missing or of another shape: libraries make them up, at random.
    """
    load = partial(_whole, flag, load, unused)
    try:
        return load(), None
    except OSError as error:
        if "file named" not in str(error):
            raise
        for variant in VARIANTS:
            try:
                model = load(variant=variant)
            except (OSError, ValueError):
                continue
            logger.warning("%s: it has no weights but those of variant %s; they are taken", flag, variant)
            return model, variant
        raise


def _whole(flag: str, load: Callable[..., Any], unused: str, **options: Any) -> Any:
    model, found = load(output_loading_info=True, **options)
    mismatched = {str(key[0] if isinstance(key, tuple) else key) for key in found["mismatched_keys"]}
    missing = sorted({*found["missing_keys"], *mismatched})
    if missing := [key for key in missing if not unused or unused not in key]:
        shown = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        raise ModelError(
            f"{flag}: its files lack {len(missing)} of its weights ({shown}), which would be made up. Download it again, whole"
        )
    return model


def weights_hash(model: torch.nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of all parameters and buffers, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 over a `transformers` tokenizer's vocabulary, and what it makes of a sentence."""
    about = [sorted(tokenizer.get_vocab().items()), tokenizer(PANGRAM).input_ids, tokenizer.pad_token]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _read_config(flag: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{flag}: {path} is not JSON ({error}). Download the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{flag}: {path} holds no JSON object. Download the model again")
    return config


def _cause_of(error: Exception) -> str:
    """Why the Hub was not reached; offline mode says so in many words."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return in_a_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)


def quiet_libraries() -> None:
    """What libraries say of weights that they load is said by messages of ours, or by none."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


def in_a_line(error: Exception, most: int = 240) -> str:
    """What a library says, which may be a page of it, in `most` characters."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= most else f"{words[:most]} ..."
