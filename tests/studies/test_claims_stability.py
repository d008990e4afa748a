"""Evidence for C4, C5, C6, C7, C12: the verdicts follow from figures that are checked against closed forms."""

import dataclasses
import json
import math

import numpy as np
import pytest

from pdejax.runs._parts import plain
from pdejax.studies import _claims_stability as claims


def check(evidence, claim, verdict):
    assert (evidence.claim, evidence.verdict) == (claim, verdict)
    assert evidence.counterexample and evidence.condition and evidence.statement
    json.dumps(plain(dataclasses.asdict(evidence)), allow_nan=False)


def test_c4_spatial_normalization_does_not_tame_growth():
    evidence = claims.claim_c4(sigmas=(0.5, 2.9, 3.1, 10.0), t1=1.0)
    check(evidence, "C4", "fails")
    figures = evidence.figures
    # σ(t) = γ/λ + (σ₀ − γ/λ)e^{λt}, and 0 after −ln(1 − λσ₀/γ)/λ: independent of the library's closed form.
    expected = [0.0, *(3 + (s - 3) * math.e for s in (2.9, 3.1, 10.0))]
    assert figures["sigma_end"] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert figures["sigma_formula"] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert figures["energy_ratio_claimed"] == pytest.approx(math.exp(-4))
    assert figures["energy_ratio"][2] > 1 > figures["energy_ratio"][1] > math.exp(-4)
    assert figures["energy_rate_of_a_constant_field"] == 0 != figures["energy_rate_claimed_there"]
    kinds = figures["stabilizations"]
    assert kinds["linear"]["kept"] and not kinds["spatial"]["kept"]
    assert kinds["retraction"]["energy_ratio"] == pytest.approx(np.ones(3), rel=1e-12)  # the sphere keeps its energy
    assert "3.1" in evidence.counterexample["field"]


def test_c5_row_stochastic_maps_contract_in_the_max_norm_only():
    evidence = claims.claim_c5(sizes=(2, 9), draws=50)
    check(evidence, "C5", "holds under an added condition")
    figures = evidence.figures
    assert figures["two_norm_of_1e1"] == pytest.approx({"2": math.sqrt(2), "9": 3.0})
    assert figures["two_norm_of_softmax_by_logit_scale"]["100.0"] == pytest.approx(3.0, rel=1e-9)
    assert figures["two_norm_of_softmax_by_logit_scale"]["1.0"] < 2
    assert figures["largest_max_norm_ratio"] <= 1 < figures["largest_two_norm_random"]
    # the energy's counterexample: eigenvalues of sym(1e₁ᵀ) − I for two tokens
    matrix = np.array([[1, 0], [1, 0]])
    growth = np.linalg.eigvalsh((matrix + matrix.T) / 2 - np.eye(2))[-1]
    assert f"{growth:.4g}" in evidence.counterexample["energy"]


def test_c6_fidelity_bound_fails_beyond_one():
    evidence = claims.claim_c6(seeds=4, depths=40)
    check(evidence, "C6", "fails")
    figures = evidence.figures
    assert figures["samples"] == figures["below_one"] + figures["above_one"] == 160
    assert figures["violated_below"] == figures["sharp_violated"] == 0
    for r, found in figures["adversarial"].items():
        assert found["fidelity"] == pytest.approx(math.sqrt(1 - float(r) ** 2), rel=1e-12)
        assert found["claimed"] == pytest.approx((1 - float(r)) / (1 + float(r)))
    assert evidence.counterexample["fidelity"] == pytest.approx(-1)
    assert evidence.counterexample["claimed"] == pytest.approx(-1 / 3)


def test_c7_emergent_diffusion_is_backward_where_its_trace_is_negative():
    evidence = claims.claim_c7(draws=60, sizes=(64, 256))
    check(evidence, "C7", "fails")
    figures = evidence.figures
    assert 0.2 < figures["negative_fraction"] < 0.8
    raw = figures["growth_rates"]["raw"]
    assert raw["256"] / raw["64"] == pytest.approx(16, rel=0.1)  # like 1/Δx²
    assert 0.9 < figures["raw_rate_over_4D_by_dx2"]["64"] < figures["raw_rate_over_4D_by_dx2"]["256"] <= 1
    for form in ("absolute", "softplus", "clip"):
        assert figures["growth_rates"][form]["256"] <= 1e-9 * raw["256"]
    assert evidence.counterexample["trace"] == pytest.approx(-0.5)  # −GELU'(0)


@pytest.mark.slow
def test_c12_attention_is_lipschitz_on_balls():
    evidence = claims.claim_c12(radii=(1.0, 4.0, 8.0), tokens=6)
    check(evidence, "C12", "holds under an added condition")
    assert evidence.figures["violations"] == 0
    assert 1.5 < evidence.figures["exponent_in_radius"] < 2.1
    for row in evidence.figures["rows"]:
        assert row["token_max_certificate"] == pytest.approx(1 + 2 * row["radius"] ** 2)
        assert 0.3 < row["token_max"] / row["token_max_certificate"] <= 1
        assert row["frobenius"] <= row["frobenius_certificate"] <= row["castin"]
    slopes = evidence.counterexample["slope"]
    assert all(value == pytest.approx(0.5 + float(r) ** 2 / 4) for r, value in slopes.items())


def test_verdicts_follow_the_numbers():
    """Below its threshold and without growth outside it, nothing breaks the claim but the constant field; a claim that is
    not made is refused."""
    inside = claims.claim_c4(sigmas=(0.5,), t1=1.0)
    assert inside.verdict == "fails" and inside.figures["energy_ratio"][0] <= inside.figures["energy_ratio_claimed"]
    assert "constant" in inside.counterexample["without_growth"]
    alone = claims.claim_c5(sizes=(1,), logits=(1.0,), draws=3)
    assert alone.verdict == "holds" and alone.counterexample == {}
    with pytest.raises(ValueError, match="gamma > growth > 0"):
        claims.claim_c4(gamma=1.0, growth=2.0)
