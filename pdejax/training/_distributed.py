"""Data-parallel training: a mesh over all devices, batches split over it, the state on every device."""

import ipaddress
import pickle
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from pdejax._arguments import checked
from pdejax._check import integer

AXIS = "data"


@checked
def initialize_distributed(coordinator: str, num_processes: int, process_id: int, *, timeout: int = 300) -> None:
    """Join `num_processes` processes, one per machine or more, before anything else of JAX is used.

    - `coordinator`: `"host:port"` of process 0, a free port there, the same in every process.
    - `process_id`: 0, ..., num_processes − 1, another in every process.
    - `timeout`: seconds to wait for the others.

    Afterwards `jax.devices()` are the devices of all processes. Raises `ValueError` for arguments that cannot be right and
    `RuntimeError` where JAX already runs or the others do not come.
    """
    host, colon, port = coordinator.rpartition(":") if isinstance(coordinator, str) else ("", "", "")
    if not colon or not _is_host(host) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"coordinator={coordinator!r} must be 'host:port', such as '10.0.0.1:12355'.")
    for name, value, least in (("num_processes", num_processes, 1), ("process_id", process_id, 0)):
        integer("initialize_distributed", name, value, least)
    if process_id >= num_processes:
        raise ValueError(f"process_id={process_id} must be less than num_processes={num_processes}: ids count from 0.")
    if num_processes == 1:
        return
    jax.distributed.initialize(
        coordinator_address=coordinator,
        num_processes=num_processes,
        process_id=process_id,
        initialization_timeout=timeout,
    )


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        try:
            return ipaddress.ip_address(host[1:-1]).version == 6
        except ValueError:
            return False
    return bool(host) and not set(host) & set("/: \t")


@checked
def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh with one axis, `data`, over the devices given, or all devices of all processes.

    The compiler places what is between (`AxisType.Auto`). Devices go process by process, so that the processes' batches
    lie behind one another in the global batch.
    """
    found = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
    if not found:
        raise ValueError("devices is empty; give at least one device, or None for all.")
    return Mesh(np.array(found), (AXIS,), axis_types=(AxisType.Auto,))


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Return this process's part of a batch, NumPy arrays, as its part of global arrays split along the first axis.

    Raises `ValueError` where the batch does not divide among the devices.
    """
    here = len(mesh.local_devices)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def split(x):
        x = np.asarray(x)
        if not x.ndim or x.shape[0] % here:
            raise ValueError(
                f"an array of shape {x.shape} does not divide among {here} devices along its first axis; "
                f"choose a batch size that is a multiple of {mesh.size}."
            )
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(split, batch)


def replicate(state: PyTree, mesh: Mesh) -> PyTree:
    """Return the state, the same in every process, copied to every device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def copy(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(copy(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return place(np.asarray(x), sharding)

    return jax.tree.map(copy, state)


def place(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has whole, with the given sharding over all of them."""
    if sharding.is_fully_addressable:
        # A copy: on a CPU the array may otherwise share the memory of `value`.
        return jax.device_put(value.copy(), sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def share(value: Any) -> Any:
    """What process 0 has, in every process; anything that can be pickled."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    content = np.frombuffer(pickle.dumps(value if jax.process_index() == 0 else None), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
    content = np.resize(content, size) if jax.process_index() else content
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process; all must ask at the same step."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
