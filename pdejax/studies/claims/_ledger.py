"""The ledger of claims: measure, judge, keep."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from pdejax import _check
from pdejax.runs._findings import Finding, Measured, counterexample_file, file_name
from pdejax.runs._parts import Parts, environment, write_json, write_whole
from pdejax.runs._programs import forget_programs
from pdejax.studies.claims._c1_continuum import C1
from pdejax.studies.claims._c2_residual import C2
from pdejax.studies.claims._c3_step import C3
from pdejax.studies.claims._c4_energy import C4
from pdejax.studies.claims._c5_stochastic import C5
from pdejax.studies.claims._c6_fidelity import C6
from pdejax.studies.claims._c7_diffusivity import C7
from pdejax.studies.claims._c8_estimate import C8
from pdejax.studies.claims._c9_signs import C9
from pdejax.studies.claims._c10_compression import C10
from pdejax.studies.claims._c11_boundary import C11
from pdejax.studies.claims._c12_lipschitz import C12
from pdejax.studies.claims._c13_decay import C13
from pdejax.studies.claims._c14_attention import C14
from pdejax.studies.claims._c15_layernorm import C15
from pdejax.studies.claims._c16_phases import C16
from pdejax.studies.claims._c17_activations import C17
from pdejax.studies.claims._claim import Claim
from pdejax.studies.claims._equations import EQUATIONS
from pdejax.studies.claims._table import markdown, table

CLAIMS: dict[str, Claim] = {
    claim.id: claim for claim in (C1, C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13, C14, C15, C16, C17)
}


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Claims with their verdicts: `claims`, `equations` (those of the papers that were asked for), `config`, `environment`,
    `seconds`, and the `files` that were written."""

    claims: tuple[Finding, ...]
    equations: tuple[Finding, ...]
    config: dict[str, Any]
    environment: dict[str, Any]
    seconds: float
    files: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Finding:
        """The finding about a claim (`"C4"`) or an equation (`"v2 (15)"`)."""
        for finding in (*self.claims, *self.equations):
            if finding.claim == name:
                return finding
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """The content of `claims.json`."""
        return {
            "study": "claims",
            "config": self.config,
            "environment": self.environment,
            "claims": [finding.to_json() for finding in self.claims],
            "equations": [finding.to_json() for finding in self.equations],
            "seconds": self.seconds,
        }

    def table(self) -> str:
        """The ledger as text, a line for each claim."""
        return table(self.claims, self.equations)

    def markdown(self) -> str:
        """The ledger as Markdown tables."""
        return markdown(self.claims, self.equations)

    def save(self, folder: str | pathlib.Path) -> tuple[str, ...]:
        """Write `claims.json`, `claims.md` and `counterexamples/*.npz`; the paths. Raises `ResultError` where that fails."""
        folder = pathlib.Path(folder)
        written = [folder / "claims.json", folder / "claims.md"]
        write_json(written[0], self.to_json())
        write_whole(written[1], self.markdown().encode())
        for finding in (*self.claims, *self.equations):
            if finding.counterexample is None:
                continue
            path = folder / counterexample_file(finding.claim)
            write_whole(path, finding.counterexample.npz())
            written.append(path)
        return tuple(str(path) for path in written)


def claims(
    ids: Sequence[str] | None = None,
    *,
    seed: int = 0,
    seeds: int = 5,
    report: Callable[[str], None] | None = None,
    row: Callable[[Finding], None] | None = None,
    out: str | pathlib.Path | None = None,
) -> Ledger:
    """Measure and judge the claims of the papers, in float64, without touching the caller's precision setting.

    - `ids`: claims (`"C1"` … `"C17"`) and equations (`"v1 (1)"` … `"v2 (19)"`) to evaluate; None for all. An equation that
      rests on a claim's evidence has that claim measured.
    - `seed`: of everything drawn; `seeds`: independent repetitions, over which intervals are taken. At least 2: from one seed
      there is no interval, and verdicts rest on single figures.
    - `report(text)` is told what is being measured; `row(finding)` gets each finding as soon as it is there.
    - `out`: folder that keeps each claim's evidence as it is finished, so that an interrupted ledger goes on from it, and the
      results (see `Ledger.save`).

    About three minutes on two cores with the default 5 seeds. Raises `ValueError` for unknown ids, none at all, or numbers out
    of range, and `ResultError` for a folder that cannot be written.
    """
    chosen, equations = _chosen(ids)
    config = {
        "seed": _check.integer("claims", "seed", seed, least=0),
        "seeds": _check.integer("claims", "seeds", seeds),
    }
    say = report if report is not None else lambda text: None
    started = time.perf_counter()
    folder = None if out is None else pathlib.Path(out)
    parts = Parts(folder, {"study": "claims", **config}, say)
    found: dict[str, Finding] = {}
    with jax.enable_x64(True):
        where = environment()

        def finding(claim: Claim) -> Finding:
            if claim.id in found:
                return found[claim.id]
            if claim.rests_on is not None:
                found[claim.id] = claim.finding_from(finding(CLAIMS[claim.rests_on]))
            else:
                say(f"{claim.id}: {claim.statement}")
                found[claim.id] = _evaluate(claim, parts, seed, seeds)
            return found[claim.id]

        rows: list[Finding] = []
        for claim in (*chosen, *equations):
            rows.append(finding(claim))
            if row is not None:
                row(rows[-1])
    seconds = time.perf_counter() - started
    ledger = Ledger(tuple(rows[: len(chosen)]), tuple(rows[len(chosen) :]), config, where, seconds)
    return ledger if folder is None else dataclasses.replace(ledger, files=ledger.save(folder))


def _evaluate(claim: Claim, parts: Parts, seed: int, seeds: int) -> Finding:
    def measure():
        started = time.perf_counter()
        assert claim.measure is not None
        measured = claim.measure(seed, seeds)
        forget_programs()
        return measured.to_json() | {"seconds": time.perf_counter() - started}

    part = parts.get(file_name(claim.id), measure)
    return claim.finding(Measured.from_json(part), float(part["seconds"]))


def _chosen(ids: Sequence[str] | None) -> tuple[list[Claim], list[Claim]]:
    if ids is None:
        return list(CLAIMS.values()), list(EQUATIONS.values())
    if isinstance(ids, str):
        raise ValueError(f"claims: ids={ids!r} must be a sequence of ids, such as [{ids!r}].")
    known = {_key(name): name for name in (*CLAIMS, *EQUATIONS)}
    unknown = [name for name in ids if _key(name) not in known]
    if unknown or not ids:
        raise ValueError(
            f"claims: ids={list(ids)!r} {'has unknown ' + ', '.join(map(repr, unknown)) if unknown else 'is empty'}; allowed "
            f"are {', '.join(CLAIMS)} and the equations {', '.join(EQUATIONS)}."
        )
    names = list(dict.fromkeys(known[_key(name)] for name in ids))
    return [CLAIMS[n] for n in names if n in CLAIMS], [EQUATIONS[n] for n in names if n in EQUATIONS]


def _key(name: object) -> str:
    """`"V1(21)"` and `"v1 (21)"` are the same."""
    return str(name).lower().replace(" ", "")
