"""Pieces of evidence for C3, C4, C5, C6, C7 and C12 against closed forms."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.studies.claims import _c3_step as c3
from pdejax.studies.claims import _c4_energy as c4
from pdejax.studies.claims import _c5_stochastic as c5
from pdejax.studies.claims import _c6_fidelity as c6
from pdejax.studies.claims import _c7_diffusivity as c7
from pdejax.studies.claims import _c12_lipschitz as c12
from pdejax.studies.claims import _c17_activations as c17


def test_c3_steps_that_v1_21_gets_wrong():
    blown, calm = c3.blown(), c3.calm()
    values = next(case for case in blown if case.name == "W_V = −10")
    # (1 − 10/2)^60 by hand; v1 (21) has W_O = 1 alone on its left side. No case uses a leak, which v1 does not have.
    assert values.left == 0.5 and values.factor == pytest.approx(4.0**60, rel=1e-9)
    assert [case.left <= 1 < case.factor for case in blown] == [True] * 3
    assert all(case.step > case.corrected for case in blown)
    isometry = c3.isometry()
    assert isometry.left <= 1 and isometry.factor == pytest.approx(1.25**30, rel=1e-9) and isometry.corrected is None
    assert sorted(case.corrected for case in blown)[:2] == pytest.approx([1 / 52, 2 * 100 / 100.4**2])
    assert [case.left > 2 and case.factor <= case.allowed for case in calm] == [True] * 2
    assert c3.diffusion_limit() == pytest.approx(1, abs=1e-5)
    for norm in (1.0, 10.0, 1000.0):
        assert c3.softmax_factor(norm) == pytest.approx(abs(1 - (2 * norm**2 + 1) / 6), rel=1e-9)


def test_c4_spatial_normalization_does_not_tame_growth():
    pair = c4.two_tokens((0.5, 2.9, 3.1, 10.0), gamma=3.0, growth=1.0, t1=1.0)
    # σ(t) = γ/λ + (σ₀ − γ/λ)e^{λt}, and 0 after −ln(1 − λσ₀/γ)/λ: independent of the library's closed form.
    expected = [0.0, *(3 + (s - 3) * math.e for s in (2.9, 3.1, 10.0))]
    assert pair["sigma_end"] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert pair["sigma_formula"] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert pair["energy_ratio_claimed"] == pytest.approx(math.exp(-4))
    assert pair["energy_ratio"][2] > 1 > pair["energy_ratio"][1] > math.exp(-4) > pair["energy_ratio"][0]
    assert c4.rate_of_a_constant_field(3.0, 1.0) == 0


def test_c4_every_stabilization_but_the_papers_keeps_what_is_claimed():
    kinds = c4.stabilizations(4)
    assert np.all(kinds["linear"] <= kinds["claimed"]) and not np.all(kinds["spatial"] <= kinds["claimed"])
    assert kinds["retraction"] == pytest.approx(np.ones(3), rel=1e-12)  # the sphere keeps its energy
    assert np.all(np.isfinite(kinds["relaxation"]))


def test_c5_row_stochastic_maps_contract_in_the_max_norm_only():
    assert [c5.two_norm_of_one_for_all(n) for n in (1, 2, 9)] == pytest.approx([1, math.sqrt(2), 3])
    flat, sharp = c5.softmax_maps(9, (1.0, 100.0))
    assert np.linalg.norm(flat, 2) < 2 and np.linalg.norm(sharp, 2) == pytest.approx(3, rel=1e-9)
    evidence = c5.measure(0, 2)
    assert evidence.corrected["largest_max_norm_ratio_of_states"].high <= 1
    assert evidence.figures["largest_two_norm_random"].low > 1


def test_c6_fidelity_bound_fails_beyond_one():
    u0, us = c6.leaky_runs(6, runs=4, depths=40)
    found = c6.counts(u0, us)
    assert found["below_one"] + found["above_one"] == 160
    assert found["violated_below"] == found["sharp_violated"] == 0
    for r in (0.2, 0.5, 0.9):
        assert c6.pushed_by_adversary(u0[0], r) == pytest.approx(math.sqrt(1 - r**2), rel=1e-12)
    fidelity, ratio = c6.half_turn()
    assert fidelity == pytest.approx(-1) and ratio == pytest.approx(2)


def test_c7_emergent_diffusion_is_backward_where_its_trace_is_negative():
    coarse, fine = c7.growth_rate(64), c7.growth_rate(256)
    assert fine.rate / coarse.rate == pytest.approx(16, rel=0.1)  # like 1/Δx²
    assert 0.9 < coarse.rate / coarse.bound < fine.rate / fine.bound <= 1
    for form in ("absolute", "softplus", "clip"):
        assert c7.growth_rate(256, form).rate <= 1e-9 * fine.rate


def test_c17_slopes_of_what_is_not_lipschitz_grow_with_the_interval(monkeypatch):
    monkeypatch.setitem(c17.ACTIVATIONS, "square", jnp.square)
    # The largest chord of z² between z and z + 1/200 on [−R, R] is 2R − 1/200.
    assert [c17._slope("square", end) for end in (6.0, 60.0)] == pytest.approx([11.995, 119.995], rel=1e-9)
    assert c17._slope("relu", 60.0) == pytest.approx(1) and c17._slope("tanh", 60.0) <= 1


@pytest.mark.slow
def test_c12_attention_is_lipschitz_on_balls():
    rows = c12.on_balls(0)
    for row in rows:
        assert row["token_max_certificate"] == pytest.approx(1 + 2 * row["radius"] ** 2)
        assert 0.3 < row["token_max"] / row["token_max_certificate"] <= 1
        assert row["frobenius"] <= row["frobenius_certificate"] <= row["castin"]
    evidence = c12.measure(0, 1)
    assert evidence.corrected["bounds_violated"] == 0 and 1.5 < evidence.figures["exponent_in_radius"].value < 2.1


def test_c12_the_slope_at_two_tokens_grows_with_their_distance():
    for radius in (0.0, 1.0, 8.0):
        assert c12.slope(radius) == pytest.approx(0.5 + radius**2 / 4)
    assert jnp.asarray(c12.smallest().arrays["slope"])[-1] > 1000
