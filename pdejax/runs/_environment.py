"""What a figure was measured with: versions, device, precision."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    *("pdejax", "jax", "jaxlib", "diffrax", "equinox", "flax", "optax"),
    *("orbax-checkpoint", "numpy", "scipy"),
)


def environment() -> dict[str, Any]:
    """Return versions, device and precision, to be kept with every result."""
    import jax  # here, so that reading results does not load it

    device = jax.devices()[0]
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device.device_kind,
        "backend": device.platform,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
        "x64": bool(jax.config.read("jax_enable_x64")),
        "versions": versions,
    }
