"""Does the network converge to a flow as its layers are refined? v2 Thm 3.2 with real input, by the convergence study."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from pdejax.plot._style import COLOURS, MARKERS, axes_of, legend
from pdejax.runs._records import Picture
from pdejax.studies.numerics._convergence import SCHEME_TOLERANCE, convergence
from pdejax.studies.numerics._convergence_config import ConvergenceConfig
from pdejax.studies.papers._experiment import experiment, row, stacked
from pdejax.studies.papers._models import Models
from pdejax.studies.papers._settings import Settings
from pdejax.studies.study import Evidence, Judgement

SCHEMES = ("euler", "lietrotter", "heun", "strang", "rk4")


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Errors and fitted orders of each scheme, the bound v2 (12) over the error, and the distance of the network."""
    config = ConvergenceConfig(seed=seed, spatial=(), solvers=SCHEMES, **settings.options)
    found = convergence(config, report=models.report)
    orders = found.results["orders"]
    data = found.to_xarray()
    regimes = {regime["family"]: regime["exponent"] for regime in found.results["regimes"]}
    return {
        "order": np.asarray([r["order"] for r in orders], float),
        "expected": np.asarray([r["expected"] for r in orders], float),
        "steps": np.asarray(data.steps.values, float),
        "error": np.asarray(data["errors"].values, float),
        "bound": np.asarray(data["v2_12_bounds"].values, float),
        # Exponent of L in the spread between draws of independent layers, at residual scale 1/L and 1/√L.
        "iid": np.asarray([regimes["iid 1/L"], regimes["iid 1/sqrt(L)"]], float),
    }


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Orders beside those of theory; the bound's least ratio to the error."""
    order, error, bound = (stacked(measured, name) for name in ("order", "error", "bound"))
    expected, steps = np.asarray(measured[0]["expected"]), np.asarray(measured[0]["steps"])
    rows = [
        row(
            f"order of {name}",
            order[:, i],
            paper="1 (Thm 3.2)" if name in ("euler", "lietrotter") else None,
            note=f"theory: {expected[i]:g}, for weights smooth in depth",
        )
        for i, name in enumerate(SCHEMES)
    ]
    ratio = np.nanmin((bound / error)[:, 0], axis=1)
    rows.append(
        row("least bound v2 (12) / error, Euler", ratio, paper="≥ 1", note="below 1 the bound would be violated")
    )
    iid = stacked(measured, "iid")
    note = "no ODE limit along a path; arXiv:2205.14612, arXiv:2206.06929"
    rows.append(
        row("independent layers, scale 1/L: exponent of L in the spread of draws", iid[:, 0], note="theory: −1/2")
    )
    rows.append(row("independent layers, scale 1/√L: the same exponent", iid[:, 1], note=f"theory: 0; {note}"))
    wrong = [
        name for i, name in enumerate(SCHEMES) if abs(float(np.mean(order[:, i])) - expected[i]) > SCHEME_TOLERANCE
    ]
    kept = "never violated" if np.all(ratio >= 1) else "VIOLATED"
    verdict = (
        f"Depth-smooth weights have a continuum limit: {len(SCHEMES) - len(wrong)} of {len(SCHEMES)} schemes have the order of "
        f"theory (Euler {np.mean(order[:, 0]):.3f}, RK4 {np.mean(order[:, -1]):.3f}); the bound v2 (12) was {kept}."
    )
    data = xr.Dataset(
        {
            "order": (("seed", "scheme"), order),
            "error": (("seed", "scheme", "steps"), error),
            "bound": (("seed", "scheme", "steps"), bound),
            "iid_exponent": (("seed", "scale"), iid),
            "expected": (("scheme",), expected),
        },
        coords={"scheme": list(SCHEMES), "steps": steps, "scale": ["1/L", "1/sqrt(L)"]},
    )
    caption = (
        "Errors against the number of steps (geometric mean over seeds), with fitted orders and the bound v2 (12)."
    )
    return Judgement(
        rows=rows, sentence=verdict, dataset=data, pictures=[Picture("continuum.png", caption, lambda: _curves(data))]
    )


def _curves(data: xr.Dataset) -> Any:
    steps, error, bound, order = (data[name].values for name in ("steps", "error", "bound", "order"))
    ax = axes_of(None, width=7.0)
    for i, name in enumerate(SCHEMES):
        middle = np.exp(np.mean(np.log(error[:, i]), axis=0))
        label = f"{name}: order {np.mean(order[:, i]):.2f}"
        ax.loglog(steps, middle, color=COLOURS[i], marker=MARKERS[i], markersize=4, label=label)
    ax.loglog(steps, np.exp(np.mean(np.log(bound[:, 0]), axis=0)), "k:", linewidth=1.2, label="bound v2 (12), Euler")
    ax.set_xlabel("steps over the whole depth")
    ax.set_ylabel("relative error at the end")
    ax.set_xticks(steps, [f"{n:g}" for n in steps])
    ax.minorticks_off()
    legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax.figure


CONTINUUM = experiment(
    name="continuum",
    title="Continuum limit",
    question="Does the network converge to a flow as layers are refined, at the order of its scheme?",
    source="v2 Thm 3.2, (10), (12); v1 (24)",
    presets={
        "quick": Settings(options={"steps": (8, 16, 32, 64), "regimes": (8, 32), "draws": 6, "length": 24, "dim": 16}),
        "paper": Settings(options={"length": 128, "dim": 128}, seeds=5),
    },
    measure=measure,
    judge=judge,
    pairing="shared",
)
