"""Image-caption datasets as `datasets` builders: after `import builders`, `load_dataset("builders/coco")` works.

    import builders
    photos = builders.load_dataset("builders/demo", split="train")

A package of yours adds `builders/NAME` by an entry point of the group `latentmill.builders`, whose value is the module that
holds the builder's class. `datasets` 5 refuses dataset scripts, so the import wraps the one function that turns a path into a builder;
every other path goes on as before. Importing is enough, as for Gymnasium's environments; the wrap is idempotent.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import datasets.inspect
import datasets.load
from datasets import load_dataset
from datasets.load import DatasetModule

from builders.core.errors import BuilderError, UnknownBuilderError

__all__ = ["BuilderError", "load_dataset", "names"]

_PREFIX = "builders/"


def names() -> list[str]:
    """The registered datasets: one module of this package each, and those of installed packages."""
    return sorted({*_ours(), *_of_packages()})


def _module_of(name: str) -> str | None:
    """Name the module of a dataset. A package cannot take the place of a dataset of ours."""
    # Entry points are looked for last: that reads a file of each installed package, as long as the rest of a small build takes.
    return f"{__name__}.{name}" if name in _ours() else _of_packages().get(name)


def _ours() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg]


def _of_packages() -> dict[str, str]:
    return {point.name: point.module for point in entry_points(group="latentmill.builders")}


def wrap(factory: Callable[..., DatasetModule]) -> Callable[..., DatasetModule]:
    if getattr(factory, "knows_builders", False):
        return factory

    @functools.wraps(factory)
    def dataset_module_factory(
        path: str, *args: Any, data_dir: str | None = None, **kwargs: Any
    ) -> DatasetModule:
        if not str(path).startswith(_PREFIX):
            return factory(path, *args, data_dir=data_dir, **kwargs)
        name = str(path).removeprefix(_PREFIX)
        found = _module_of(name)
        if found is None:
            raise UnknownBuilderError(f"load_dataset({path!r}): no such builder. Known: {', '.join(names())}")
        module = importlib.import_module(found)
        # A new dict each time: load_dataset_builder takes things out of it. The builder itself sets the real hash.
        settings = {"dataset_name": f"builders___{name}"} | (
            {} if data_dir is None else {"data_dir": data_dir}
        )
        return DatasetModule(module.__name__, "", settings)

    dataset_module_factory.knows_builders = True  # type: ignore[attr-defined]
    return dataset_module_factory


for _module in (datasets.load, datasets.inspect):  # inspect has imported the name for itself
    _module.dataset_module_factory = wrap(_module.dataset_module_factory)
