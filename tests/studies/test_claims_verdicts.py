"""Every verdict is a function of the evidence: with the evidence that is stored it is what the ledger says, and a figure changed
at will changes it."""

import json
import pathlib

import pytest

from pdejax import Figure
from pdejax.runs._findings import figures_from_json
from pdejax.studies.claims import CLAIMS, EQUATIONS
from pdejax.studies.claims._config import CLAIM_IDS, EQUATION_IDS

HOLDS, IF, FAILS = "holds", "holds under an added condition", "fails"
NEVER = Figure(0.0, 0.0, 0.0)
TINY = Figure(2e-16, 1e-16, 3e-16)


def around(value, half=0.02):
    return Figure(value, value - half, value + half)


# What `pdejax claims` measured and said.
_LEDGER = json.loads(
    (pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "claims" / "claims.json").read_text()
)["results"]
STORED = {saved["claim"]: saved for saved in (*_LEDGER["claims"], *_LEDGER["equations"])}
MEASURED = {
    name: figures_from_json(saved["figures"]) | figures_from_json(saved["corrected_figures"])
    for name, saved in STORED.items()
}
VERDICTS = {
    **{name: IF for name in ("C1", "C2", "C5", "C11", "C12", "C15")},
    **{name: FAILS for name in ("C3", "C4", "C6", "C7", "C8", "C9", "C10", "C13", "C14", "C16", "C17")},
}
# Other evidence, and what it would say.
PERTURBED = [
    ("C1", {"iid_spread_exponent_at_scale_1_by_sqrt_L": around(-0.5)}, HOLDS),
    ("C1", {"order_euler": around(0.5)}, FAILS),
    ("C2", {f"distance_to_euler_{n}": TINY for n in ("sequential", "post", "macaron")}, HOLDS),
    ("C2", {"distance_to_euler_parallel": around(0.1)}, FAILS),
    ("C2", {"distance_to_native_post": around(0.1)}, FAILS),
    ("C3", {"runs_blown_up_with_left_side_at_most_1": 0, "share_of_runs_wrongly_called_safe": NEVER}, HOLDS),
    (
        "C3",
        {
            "runs_blown_up_with_left_side_at_most_1": 0,
            "share_of_runs_wrongly_called_safe": NEVER,
            "limit_for_diffusion_alone": 1.5,
        },
        IF,
    ),
    ("C4", {"energy_rate_of_constant_field": -3.0}, IF),
    (
        "C4",
        {
            "energy_rate_of_constant_field": -3.0,
            "energy_over_claim_outside_basin": 0.5,
            "worst_energy_over_claim_v2_9": around(0.5),
        },
        HOLDS,
    ),
    (
        "C5",
        {
            **{f"two_norm_of_one_token_for_all_{n}": 1.0 for n in (2, 16)},
            **{f"two_norm_of_softmax_at_logit_scale_{n}": 1.0 for n in (1, 100)},
            "largest_two_norm_random": Figure(1.0, 1.0, 1.0),
        },
        HOLDS,
    ),
    ("C5", {"largest_max_norm_random": Figure(1.0, 1.0, 1.1)}, FAILS),
    ("C6", {"fidelity_at_I_minus_2_u0": 0.0}, IF),
    ("C6", {"fidelity_at_I_minus_2_u0": 0.0, "share_violated_with_r_above_1": NEVER}, HOLDS),
    ("C7", {"growth_rate_64_tokens": 0.0}, IF),
    ("C7", {"growth_rate_64_tokens": 0.0, "share_of_tokens_with_negative_trace": NEVER}, HOLDS),
    ("C8", {"excess_poor_marginal": around(-1.0), "excess_two_valued": around(-1.0)}, HOLDS),
    ("C9", {"weight_norm_change_v1_3": around(-0.2), "information_change_line_33": around(-0.2)}, HOLDS),
    ("C9", {"weight_norm_change_v1_3": around(-0.2), "information_change_line_33": around(0.0)}, IF),
    ("C10", {"exact_change_of_information": around(1.0), "error_of_field_run_back_to_its_input": around(0.5)}, HOLDS),
    ("C10", {"fall_of_binned_estimate": NEVER}, IF),
    ("C11", {"order_uniform_incompatible": around(2.0)}, HOLDS),
    ("C11", {"order_uniform_compatible": around(1.0)}, FAILS),
    ("C12", {"exponent_in_radius": around(0.0)}, HOLDS),
    ("C12", {"bounds_violated": 1}, FAILS),
    (
        "C13",
        {
            **{f"rate_in_layers_8_to_16_without_residual_scale_{s:g}": around(0.5) for s in (0.5, 1, 2)},
            **{f"fidelity_at_16_with_residual_scale_{s:g}": around(0.5) for s in (0.5, 1, 2)},
        },
        IF,
    ),
    (
        "C13",
        {
            **{f"rate_in_layers_8_to_16_without_residual_scale_{s:g}": around(0.5) for s in (0.5, 1, 2)},
            **{f"fidelity_at_16_with_residual_scale_{s:g}": around(0.5) for s in (0.5, 1, 2)},
            "fidelity_without_residual_identity_values": 0.0,
            "fidelity_with_residual_rotation": 0.5,
        },
        HOLDS,
    ),
    ("C14", {"cosine_of_unrelated_maps_at_weights_0.02": around(0.4)}, IF),
    (
        "C14",
        {
            "cosine_of_unrelated_maps_at_weights_0.02": around(0.4),
            "cosine_of_independent_logits_of_std_0.1": around(0.4),
        },
        HOLDS,
    ),
    ("C15", {"gradient_none_over_pre_at_start": around(1.0)}, FAILS),
    (
        "C15",
        {
            f"{kind}_{what}": around(10.0)
            for kind in ("gradient_none_over", "gradient_bare_over")
            for what in ("pre_at_start", "post_at_start", "pre_in_training", "post_in_training")
        }
        | {"spikes_none_over_pre": around(3.0), "spikes_bare_over_pre": around(3.0)},
        HOLDS,
    ),
    ("C16", {"share_with_three_phases_fixed_noise": around(0.8)}, IF),
    (
        "C16",
        {f"share_with_three_phases_{k}_noise": around(0.8) for k in ("fixed", "relative")},
        HOLDS,
    ),
    ("C16", {"share_found_where_there_are_three": 0.1}, IF),
    ("C17", {"derivative_jump_relu": 0.0}, IF),
    ("C17", {"derivative_jump_relu": 0.0, "order_rk4_relu": around(4.0)}, HOLDS),
]


# "About ten times" means more than 10/3: evidence on either side of where C15's judge draws a line.
RATIOS = [
    f"gradient_{kind}_over_{base}_{when}"
    for kind in ("none", "bare")
    for base in ("pre", "post")
    for when in ("at_start", "in_training")
]
TEN = {name: around(10.0) for name in RATIOS} | {f"spikes_{kind}_over_pre": around(1.03) for kind in ("none", "bare")}
C15_LINES = [
    ({}, HOLDS),
    *(
        ({name: around(value)}, verdict)
        for name in RATIOS[:1] + RATIOS[2:3]
        for value, verdict in ((3.3, FAILS), (3.37, HOLDS))
    ),
    *(
        ({name: around(value)}, verdict)
        for name in RATIOS[1:2] + RATIOS[3:]
        for value, verdict in ((3.3, IF), (3.37, HOLDS))
    ),
    *(({f"spikes_{kind}_over_pre": around(1.01)}, IF) for kind in ("none", "bare")),
]


@pytest.mark.parametrize(("figures", "verdict"), C15_LINES)
def test_where_c15_draws_its_lines(figures, verdict):
    assert CLAIMS["C15"].judge(MEASURED["C15"] | TEN | figures) == verdict


@pytest.mark.parametrize("name", [*CLAIMS, *EQUATIONS])
def test_stored_evidence_gives_the_stored_verdict(name):
    claim, saved = (CLAIMS | EQUATIONS)[name], STORED[name]
    assert claim.judge(MEASURED[claim.rests_on or name]) == saved["verdict"]
    assert saved["verdict"] == VERDICTS.get(name, saved["verdict"])
    assert (claim.statement, claim.condition) == (saved["statement"], saved["condition"])
    assert (claim.source if claim.rests_on is None else claim.rests_on) == saved["source"]
    assert saved["code"] == (CLAIMS[claim.rests_on] if claim.rests_on else claim).code
    assert set(claim.headline) <= set(MEASURED[name])


@pytest.mark.parametrize(("name", "figures", "verdict"), PERTURBED)
def test_other_figures_give_another(name, figures, verdict):
    assert figures.keys() <= MEASURED[name].keys()
    assert verdict != VERDICTS[name]
    assert CLAIMS[name].judge(MEASURED[name] | figures) == verdict


def test_every_claim_is_perturbed():
    assert {name for name, _, _ in PERTURBED} == set(CLAIMS) == set(VERDICTS)
    assert set(MEASURED) == {*CLAIMS, *EQUATIONS}
    assert tuple(CLAIMS) == CLAIM_IDS == tuple(f"C{i}" for i in range(1, 18))


def test_every_numbered_equation_is_there():
    assert list(EQUATIONS) == [f"v1 ({i})" for i in range(1, 25)] + [f"v2 ({i})" for i in range(1, 20)]
    assert tuple(EQUATIONS) == EQUATION_IDS
    for equation in EQUATIONS.values():
        assert (equation.rests_on is None) != (equation.measure is None), equation.id
        assert equation.statement and equation.headline
        assert equation.rests_on is None or equation.rests_on in CLAIMS


@pytest.mark.parametrize("name", [e.id for e in EQUATIONS.values() if e.rests_on is not None])
def test_equations_follow_their_claims(name):
    """With the claim's figures the equation does not hold as printed, but for v1 (14); with all figures that the claim would
    need, it does."""
    equation = EQUATIONS[name]
    verdict = equation.judge(MEASURED[equation.rests_on])
    assert verdict == (HOLDS if name == "v1 (14)" else equation.judge(MEASURED[equation.rests_on]))
    assert (verdict == HOLDS) == (name == "v1 (14)")
    others = [equation.judge(MEASURED[c] | figures) for c, figures, _ in PERTURBED if c == equation.rests_on]
    if name == "v1 (14)":
        others = [equation.judge(MEASURED["C9"] | {"information_change_v1_14": around(0.1)})]
    assert any(other != verdict for other in others)


# Checks of their own: other figures, which give another verdict.
OWN = {
    "v1 (1)": {"largest_relative_error": around(0.1)},
    "v1 (8)": {"order_in_dx": around(1.0)},
    "v1 (23)": {"distance_as_a_layer": TINY},
    "v1 (24)": {"order_in_attention_error": around(0.5)},
    "v2 (5)": {"order_in_dx": around(1.0)},
    "v2 (9)": {"mean_at_the_end": NEVER, "deviation_at_the_end": around(1.0)},
    "v2 (10)": {"jump_as_printed_over_step": TINY},
    "v2 (12)": {"largest_error_over_bound": around(1.5)},
    "v2 (18)": {"order_relu_at_kink": around(2.0)},
    "v2 (19)": {"distance_with_leak_in_every_head": TINY},
}


@pytest.mark.parametrize("name", OWN)
def test_equations_with_checks_of_their_own_follow_their_figures(name):
    assert OWN[name].keys() <= MEASURED[name].keys()
    assert EQUATIONS[name].judge(MEASURED[name]) != EQUATIONS[name].judge(MEASURED[name] | OWN[name])


def test_identities_share_one_judgement():
    identities = [e for e in EQUATIONS.values() if e.headline == ("largest_relative_error",)]
    assert len(identities) > 15
    for equation in identities:
        assert equation.judge({"largest_relative_error": TINY}) == HOLDS
        assert equation.judge({"largest_relative_error": around(0.1)}) == FAILS
