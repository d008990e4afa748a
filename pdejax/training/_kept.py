"""Models read back: from the folder of a training run, or from the one file that a model is kept in."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PyTree

from pdejax._arguments import checked
from pdejax.models import load_model
from pdejax.models._saving import Model, model_of_record
from pdejax.training._checkpoints import read_checkpoint, rebuild
from pdejax.training._config import TrainConfig
from pdejax.training._distributed import share
from pdejax.training._step import merge_model, split_model


class TrainedModel(NamedTuple):
    """A model read back from a training folder: at which step it was saved, what it was trained with, and the figures of the
    test split (none while the run has not ended)."""

    model: Model
    config: TrainConfig
    step: int
    test: dict[str, float]

    def __repr__(self) -> str:
        test = ", ".join(f"{name} {value:.4f}" for name, value in self.test.items())
        return (
            f"trained on {self.config.dataset}, seed {self.config.seed}, step {self.step} of {self.config.steps}"
            f"{f'; test {test}' if test else ''}\n{self.model!r}"
        )


@checked
def load_trained(folder: str | os.PathLike[str], which: str | int = "best") -> TrainedModel:
    """Return the model that `train` left in `folder`: `"best"` on the validation split, `"latest"`, or that of a step.

    Raises `ValueError` for a folder without a trained model and an unknown `which`, `CheckpointError` for damaged files.
    """
    path = pathlib.Path(folder) / "config.json"
    try:
        saved = json.loads(path.read_text())
        config = TrainConfig(**saved["train"])
        model = model_of_record(saved["model"])
    except FileNotFoundError:
        raise ValueError(f"folder={str(folder)!r} has no config.json; give the folder that train wrote to.") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not of a training run, or is damaged: {error}.") from error
    params, static = split_model(model)
    found = read_checkpoint(folder, which)
    return TrainedModel(merge_model(_only(found, params), static), config, found.step, _test_figures(folder))


class SavedModel(NamedTuple):
    """A model from a training folder or from a file, with what it was trained with and for how many steps, where that is
    known."""

    model: Model
    config: TrainConfig | None
    step: int | None


def saved_model(owner: str, name: str, path: str | os.PathLike[str]) -> SavedModel:
    """Read a model however it was kept: the best of a training folder, or a file of `save_model`.

    Raises `FileNotFoundError` where there is neither, naming the `owner` and the argument's `name`, and as `load_trained` and
    `load_model`.
    """
    place = pathlib.Path(path)
    if place.is_dir():
        found = load_trained(place)
        return SavedModel(found.model, found.config, found.step)
    if not place.is_file():
        raise FileNotFoundError(
            f"{owner}: {name}={os.fspath(path)!r} does not exist; give a folder that `pdejax train --out` left, or a file that "
            "pdejax.save_model wrote."
        )
    model, about = load_model(place)
    return SavedModel(model, _config_of(about), about.get("step"))


def metadata(config: dict[str, Any], step: int | None, test: dict[str, float]) -> dict[str, Any]:
    """What a trained model's file says of its training; `saved_model` reads it."""
    return {"train": config, "step": step, "test": test}


def _config_of(about: dict[str, Any]) -> TrainConfig | None:
    """The configuration of the training; None for a file that says nothing of one, or not in our words."""
    try:
        return TrainConfig(**about["train"])
    except (KeyError, TypeError, ValueError):
        return None


def read_parameters(folder: str | os.PathLike[str], like: PyTree[Array], which: str | int) -> PyTree[Array]:
    """Return the parameters that a training folder keeps, with the structure of `like`."""
    # Of several processes only the first writes and reads the folder.
    found = share(read_checkpoint(folder, which) if jax.process_index() == 0 else None)
    return _only(found, like)


def _test_figures(folder: str | os.PathLike[str]) -> dict[str, float]:
    path = pathlib.Path(folder) / "result.json"
    return json.loads(path.read_text())["test"] if path.exists() else {}


class _Parameters(NamedTuple):
    params: PyTree[Array]


def _only(saved, like: PyTree[Array]) -> PyTree[Array]:
    """The parameters alone of a saved state, which also holds the optimizer's."""
    leaves = {name: leaf for name, leaf in saved.leaves.items() if name.startswith("params/")}
    return rebuild(saved._replace(leaves=leaves), _Parameters(like)).params
