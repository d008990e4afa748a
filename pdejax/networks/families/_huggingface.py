"""A Hugging Face folder as a `Checkpoint`: `config.json`, safetensors in one file or several, `tokenizer.json`."""

import functools
import pathlib
from typing import Any

from pdejax.networks.families._checkpoint import Checkpoint, Stored, fault, file_size, json_table, listed
from pdejax.networks.families._safetensors import read_safetensors

_INDEX = "model.safetensors.index.json"
# No configuration or index is near that long; a file that is holds something else.
_LONGEST_JSON = 50_000_000


def read_folder(folder: pathlib.Path) -> Checkpoint:
    """Return what a folder holds; of its tensors only the headers are read.

    Raises `FileNotFoundError` for a file that is missing, `CheckpointError` for one that is damaged, for several checkpoints in
    one folder, and for weights that only pickle could read.
    """
    files = _weight_files(folder)
    config = read_json(folder / "config.json")
    tensors: dict[str, Stored] = {}
    for path in files:
        for name, stored in read_safetensors(path).items():
            if name in tensors:
                raise fault(folder.name, f"tensor {name!r} is in two files; the checkpoint holds more than one model.")
            tensors[name] = stored
    if (folder / _INDEX).is_file():
        _check_index(folder, tensors)
    tokenizer = folder / "tokenizer.json"
    load = functools.partial(tokenizer_of_file, tokenizer) if tokenizer.is_file() else None
    return Checkpoint(folder.name, config, tensors, load)


def onnx_of_folder(folder: pathlib.Path) -> pathlib.Path | None:
    """The ONNX file of a folder that has no other weights, or None. Raises `CheckpointError` for several."""
    if any(next(folder.glob(pattern), None) is not None for pattern in ("*.safetensors", "*.gguf", _INDEX)):
        return None
    found = sorted(folder.glob("*.onnx"))
    if len(found) > 1:
        names = listed(path.name for path in found)
        raise fault(
            folder.name,
            f"the folder holds several checkpoints: {names}. Give the path of one, or move the others away.",
        )
    return found[0] if found else None


def tokenizer_of_file(path: pathlib.Path) -> Any:
    """The `tokenizers.Tokenizer` of a `tokenizer.json`; `CheckpointError` for a file that is none."""
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain ones
        raise fault(path.name, f"it is no file of the tokenizers package ({error}); download it again.") from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The table in a JSON file; `FileNotFoundError` or `CheckpointError` where there is none."""
    if not path.is_file():
        raise FileNotFoundError(
            f"load_pretrained: {path.parent.name}: there is no {path.name}, which a Hugging Face folder has; give the "
            "folder that holds it, or a .gguf file."
        )
    if file_size(path) > _LONGEST_JSON:
        raise fault(path.name, f"it has {file_size(path)} bytes, too many for a configuration.")
    return json_table(path.name, path.read_bytes(), "it")


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of the one checkpoint in the folder."""
    gguf = sorted(path.name for path in folder.glob("*.gguf"))
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    single, index = folder / "model.safetensors", folder / _INDEX
    if index.is_file() or single.is_file():
        # The same model in its maker's own names, as Mistral's folders have it.
        found = [name for name in found if not name.startswith("consolidated")]
    if index.is_file():
        parts = set(_weight_map(index).values())
        missing = sorted(name for name in parts if not (folder / name).is_file())
        if missing:
            raise FileNotFoundError(
                f"load_pretrained: {folder.name}: {_INDEX} names files that are not there: {listed(missing)}; download them too."
            )
        rest = [name for name in found if name not in parts] + gguf
        files = [folder / name for name in sorted(parts)]
    elif single.is_file():
        rest = [name for name in found if name != single.name] + gguf
        files = [single]
    elif len(found) == 1 and not gguf:
        return [folder / found[0]]
    else:
        rest, files = found + gguf, []
    if len(rest) + bool(files) > 1:
        raise fault(
            folder.name,
            f"the folder holds several checkpoints: {listed([*(f.name for f in files), *rest])}. "
            f"{'Give the path of a .gguf file, or move' if gguf else 'Move'} all but one of them away.",
        )
    if not files:
        raise _no_weights(folder, rest)
    return files


def _no_weights(folder: pathlib.Path, gguf: list[str]) -> Exception:
    if gguf:
        return FileNotFoundError(
            f"load_pretrained: {folder.name}: the folder has no safetensors but a GGUF file; give its path, that of {gguf[0]}."
        )
    pickled = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(kind))
    if pickled:
        return fault(
            folder.name,
            f"the weights ({listed(pickled)}) are pickled, which can run any code and is never read; convert them with "
            "transformers: AutoModel.from_pretrained(folder).save_pretrained(other_folder).",
        )
    return FileNotFoundError(
        f"load_pretrained: {folder.name}: there are no weights in the folder, neither model.safetensors nor {_INDEX}; download "
        "them: hf download NAME --local-dir FOLDER."
    )


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(_plain(name) for name in found.values()):
        raise fault(index.name, "it has no weight_map from tensors to files of the folder; download it again.")
    return found


def _plain(name: Any) -> bool:
    """Whether this is a file of the folder itself."""
    return isinstance(name, str) and name.endswith(".safetensors") and pathlib.PurePath(name).name == name


def _check_index(folder: pathlib.Path, tensors: dict[str, Stored]) -> None:
    named = set(_weight_map(folder / _INDEX))
    if named != tensors.keys():
        wrong = listed(named ^ tensors.keys())
        raise fault(folder.name, f"{_INDEX} and the files do not name the same tensors: {wrong}; download it again.")
