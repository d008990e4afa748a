"""A folder of results in the layout that the studies write, small but with everything that may stand in one."""

import io
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

ENVIRONMENT = {
    "python": "3.11.9",
    "device": "cpu",
    "backend": "cpu",
    "cores": 2,
    "x64": False,
    "versions": {"pdejax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8", "diffrax": "0.7.2"},
}


def image(seed: int) -> bytes:
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = np.random.default_rng(seed).normal(size=(10, 24)).cumsum(axis=0)
    shown = left.imshow(values, aspect="auto", cmap="RdBu_r", origin="lower")
    figure.colorbar(shown, ax=left, label="first feature")
    left.set(xlabel="token position", ylabel="depth t (layers)")
    right.plot(np.arange(10), np.exp(-np.arange(10) / (3 + seed)), "o-", color="#0072B2")
    right.set(xlabel="layer", ylabel="correlation with the input")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


def cell(mean: float, half: float | None, seeds: int, rng) -> dict:
    values = (mean + (half or 0.0) * rng.normal(size=seeds)).tolist()
    ends = {"low": None, "high": None} if half is None else {"low": mean - half, "high": mean + half}
    return {"mean": mean, **ends, "values": values}


def study(folder, name: str, title: str, source: str, rows: list[dict], *, seed: int = 0, **changes) -> dict:
    place = folder / name
    place.mkdir(parents=True)
    (place / "states.png").write_bytes(image(seed))
    (place / "result.nc").write_bytes(b"CDF\x01")
    result = {
        "study": name,
        "title": title,
        "question": "How alike are the hidden states of a Transformer and of the field it discretizes, layer by layer?",
        "source": source,
        "config": {"dataset": "listops", "layers": 6, "dim": 128, "solver": "euler", "steps": [6, 12, 24]},
        "config_hash": "5f2c0d9e8a71b643",
        "seeds": [0, 1, 2],
        "preset": "quick",
        "environment": ENVIRONMENT,
        "pairing": "distilled",
        "table": rows,
        "verdict": f"{title}: the two agree within the interval at {len(rows)} of {len(rows)} quantities.",
        "figures": [{"file": "states.png", "caption": "Hidden states by layer, and their correlation with the input."}],
        "data": "result.nc",
        "seconds": 83.5,
        **changes,
    }
    (place / "result.json").write_text(json.dumps(result))
    return result


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """The folder; read only. A test that damages something copies it."""
    folder = tmp_path_factory.mktemp("report") / "papers"
    rng = np.random.default_rng(0)
    layers = [
        {
            "quantity": f"Pearson, layer {k} and {k + 1}",
            "unit": "",
            "paper": paper,
            "ours": cell(0.9 + 0.01 * k, 0.004 / k, 3, rng),
            "null": cell(0.02 * k - 0.05, 0.01, 3, rng),
            "null_name": "tokens shuffled",
            "note": "",
        }
        for k, paper in enumerate(("0.9211", "0.9463", "0.9503", "0.9567", "−0.0747"), start=1)
    ]
    study(folder, "information-flow", "Information flow through the layers", "v1 §3.1, Table 2", layers)
    others = [
        {
            "quantity": "gradient norm, first layer",
            "unit": "1",
            "paper": "1e-3…1e-2",
            "ours": cell(0.0042, 0.0011, 3, rng),
            "null": None,
            "null_name": None,
            "note": "at initialization; after training the norm falls by the factor that the next line gives",
        },
        {
            "quantity": "field evaluations",
            "unit": "per layer",
            "paper": None,
            "ours": cell(12345.0, None, 1, rng),
            "null": cell(1.25e-9, None, 1, rng),
            "null_name": "untrained",
            "note": "",
        },
    ]
    study(folder, "gradients", "Gradient norms over training", "v1 §3.4", others, seed=3, pairing=None)
    study(folder, "alignment", "Alignment", "v2 §4.2", layers[:2], seed=5)
    ledger = {
        "study": "claims",
        "config": {"seed": 0, "seeds": 5},
        "environment": ENVIRONMENT,
        "claims": [
            {
                "claim": "C4",
                "statement": "With S of v2 (9), ⟨u, S(u)⟩ ≤ −2γE, and the energy decays if γ > L_A + L_R.",
                "source": "v2 Thm 3.3",
                "verdict": "fails",
                "condition": "Holds for S = −γu with growth constants.",
                "figures": {"largest ⟨u,S⟩/(−2γE)": 0.25, "runs": 64, "damped": True},
                "corrected_figures": {"decay rate / bound": {"mean": 0.93, "low": 0.91, "high": 0.95}},
                "counterexample": {"description": "Two tokens, u = (3, −3).", "file": "counterexamples/C4.npz"},
                "code": "pdejax.studies.claims._c4_energy.measure",
                "seconds": 1.25,
            },
            {
                "claim": "C1",
                "statement": "An L-layer Transformer converges to the continuous system at rate O(h).",
                "source": "v2 Thm 3.2",
                "verdict": "holds if the weights are smooth in depth",
                "condition": "Weights smooth in depth.",
                "figures": {"order of Euler": {"mean": 0.994, "low": 0.988, "high": 1.0}},
                "corrected_figures": {},
                "counterexample": None,
                "code": "pdejax.studies.claims._c1_continuum.measure",
                "seconds": 31.0,
            },
            {
                "claim": "C11",
                "statement": "Zero Dirichlet boundary.",
                "source": "v1 (7)",
                "verdict": "holds",
                "condition": "",
                "figures": {},
                "corrected_figures": {},
                "counterexample": None,
                "code": "pdejax.studies.claims._c11_boundary.measure",
                "seconds": 0.2,
            },
        ],
        "equations": [
            {
                "claim": "v1 (21)",
                "statement": "2DΔt/Δx² + αΔt‖W_O‖₂ ≤ 1",
                "verdict": "fails",
                "figures": {"unsafe": 616},
            }
        ],
    }
    (folder / "counterexamples").mkdir()
    (folder / "counterexamples" / "C4.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    kinds = {key: ledger.pop(key) for key in ("claims", "equations")}
    (folder / "claims.json").write_text(json.dumps(ledger | {"results": kinds}))
    return folder
