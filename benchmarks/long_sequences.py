"""Long sequences on several devices: ring attention, diffusion by halos, memory per device.

    python benchmarks/long_sequences.py --out benchmarks/results    # half an hour on two cores
    python benchmarks/long_sequences.py --parts gradient --out benchmarks/results    # that anew, the rest as it is there

Eight devices are made of this machine's processor, which says what is computed and how much memory it takes, not how fast.
Compares a field of 100,000 tokens and its gradient with those of one device, fits the compiled programs' memory by
a + b·N/devices, and says from that what a million tokens need. Writes long_sequences.json.
"""

import argparse
import json
import os
import pathlib
import sys
import time

MILLION = 1_000_000
PARTS = ("memory", "field", "gradient")
LENGTHS, COUNTS = (16_384, 32_768, 65_536), (1, 2, 4, 8)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder for the result")
    parser.add_argument("--length", type=int, default=100_000, help="tokens of the fields that are compared")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured")
    parser.add_argument("--devices", type=int, default=8, help="devices to make")
    parser.add_argument("--dim", type=int, default=64, help="features of the fields whose memory is measured")
    parser.add_argument("--heads", type=int, default=4, help="their heads")
    given = parser.parse_args(arguments)
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={given.devices}"
    )
    from pdejax.runs import environment
    from pdejax.runs._files import write_json

    path, found = given.out / "long_sequences.json", {}
    if set(given.parts) != set(PARTS):
        found = json.loads(path.read_text())
        if found["environment"] != environment():
            raise SystemExit(f"{path} was measured elsewhere; measure all parts.")
    found |= {"dim": given.dim, "heads": given.heads, "environment": environment()}
    if "memory" in given.parts:
        memory = {kind: table(given, kind) for kind in ("field", "gradient")}
        found |= {"memory": memory, "million": {kind: million(rows) for kind, rows in memory.items()}}
    for kind in PARTS[1:]:
        if kind in given.parts:
            found["compared"] = found.get("compared", {}) | {kind: compare(given.length, given.devices, kind)}
    write_json(path, found)
    print(json.dumps({key: value for key, value in found.items() if key != "environment"}, indent=1))
    return 0


def equation(length: int, dim: int, heads: int, causal: bool):
    """Attention, feed-forward network and diffusion."""
    import jax

    import pdejax as pj

    keys = jax.random.split(jax.random.key(0))
    return pj.MasterEquation(
        pj.Attention(dim, heads, key=keys[0], causal=causal),
        pj.FeedForward(dim, 2 * dim, key=keys[1]),
        pj.Diffusion(pj.Grid(length), 0.1 / length**2),
    )


def table(given: argparse.Namespace, kind: str) -> list[dict[str, float]]:
    """Temporaries of the compiled program on one device, bytes, by tokens and devices; of the field or of its gradient."""
    import jax
    import jax.numpy as jnp

    import pdejax as pj

    rows = []
    for length in LENGTHS:
        for count in [n for n in COUNTS if n <= given.devices]:
            made = equation(length, given.dim, given.heads, causal=True)
            field = pj.shard_tokens(made, jax.devices()[:count])
            assert not isinstance(field, pj.DepthVarying)
            axis = jax.sharding.NamedSharding(field.mesh, jax.sharding.PartitionSpec("tokens"))
            x = jax.ShapeDtypeStruct((length, given.dim), jnp.float32, sharding=axis)

            def value(u, field=field):
                return field(0.0, u, None)

            def slope(u, value=value):
                return jax.grad(lambda v: jnp.sum(value(v) ** 2))(u)

            compiled = jax.jit(value if kind == "field" else slope).lower(x).compile()
            found = compiled.memory_analysis()
            assert found is not None
            size = found.temp_size_in_bytes
            rows.append({"tokens": length, "devices": count, "bytes": size})
            print(f"{kind}: {length} tokens on {count}: {size / 1e6:.1f} MB each", flush=True)
    return rows


def million(rows: list[dict[str, float]]) -> dict[str, float]:
    """What a million tokens need, by least squares of a + b·N/devices over several devices; and how far sizes are from it."""
    import numpy as np

    # One device sends nothing, and holds no second copy of keys and values.
    rows = [row for row in rows if row["devices"] > 1]
    per = np.array([row["tokens"] / row["devices"] for row in rows])
    size = np.array([row["bytes"] for row in rows])
    # Relative: small programs count as much as large ones.
    columns = np.stack([np.ones_like(per), per], axis=1)
    (a, b), *_ = np.linalg.lstsq(columns / size[:, None], np.ones_like(size), rcond=None)
    found = {"fixed_bytes": float(a), "bytes_per_token": float(b)}
    found["largest_relative_error"] = float(np.abs((a + b * per) / size - 1).max())
    for count in (8, 64):
        found[f"gigabytes_per_device_on_{count}"] = float(a + b * MILLION / count) / 1e9
    found["gigabytes_of_one_map"] = MILLION**2 * 4 / 1e9
    return found


def compare(length: int, devices: int, kind: str) -> dict[str, float]:
    """A field of so many tokens, or the gradient of half its square by the tokens, on all devices beside that of one, float32."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    import pdejax as pj

    dim, heads = 8, 1
    made = equation(length, dim, heads, causal=True)
    field = pj.shard_tokens(made)
    assert not isinstance(field, pj.DepthVarying)
    u = jax.random.normal(jax.random.key(1), (length, dim), jnp.float32)

    @eqx.filter_jit
    def run(field, u):
        def value(v):
            return field(0.0, v, None)

        return value(u) if kind == "field" else jax.grad(lambda v: jnp.sum(value(v) ** 2) / 2)(u)

    took = []
    for one, x in ((made, u), (field, field.place(u))):
        started = time.perf_counter()
        found = run(one, x).block_until_ready()
        took.append(time.perf_counter() - started)
        if one is made:
            expected = found
    gap = field.collect(found) - expected
    return {
        "tokens": length,
        "devices": devices,
        "dim": dim,
        "heads": heads,
        "largest_difference": float(jnp.abs(gap).max()),
        "relative_difference": float(jnp.linalg.norm(gap) / jnp.linalg.norm(expected)),
        "largest_value": float(jnp.abs(expected).max()),
        "seconds_one": took[0],
        "seconds_sharded": took[1],
    }


if __name__ == "__main__":
    sys.exit(main())
