"""Where each judge of a claim draws its lines: the verdict on either side of every one."""

import pytest
from test_claims_verdicts import DEFINITION, FAILS, HOLDS, IF, MEASURED, NOT_SHOWN, around

from pdejax import Figure
from pdejax.studies.claims import CLAIMS, EQUATIONS
from pdejax.studies.claims._c5_stochastic import IN_L2, IN_MAX


def at(value):
    return around(value, 0.0)


def upto(high):
    return Figure(-1.0, -2.0, high)


def past(low):
    return Figure(1.0, low, 2.0)


NEVER = at(0.0)
EXCESS = [f"excess_{kind}" for kind in ("poor_marginal", "two_valued", "poor_conditional")]
SHRINK = [f"{kind}_change_{name}" for kind in ("weight_norm", "information") for name in ("v1_14", "v1_3", "line_33")]
PHASES = [f"share_with_three_phases_{kind}_noise" for kind in ("fixed", "relative")]
ENERGIES = ["energy_over_claim_inside_basin", "energy_over_claim_outside_basin", "worst_energy_over_claim_v2_9"]
CHANCE = [f"fidelity_at_16_without_residual_over_chance_scale_{s:g}" for s in (0.5, 1, 2)]
TURNED, SMALL = "fidelity_of_a_stable_rotation", "share_below_bound_with_small_updates"
SAFE = {"runs_blown_up_with_left_side_at_most_1": 0, "share_of_runs_wrongly_called_safe": NEVER}
DAMPED = {"energy_rate_of_constant_field": -3.0} | dict.fromkeys(ENERGIES, at(0.5))
FORGETS = dict.fromkeys(CHANCE, at(1.0)) | {TURNED: 0.5, SMALL: NEVER}
ABLE = dict.fromkeys(PHASES, at(0.0)) | {
    "share_found_where_there_are_three": at(1.0),
    "share_found_where_there_are_none": NEVER,
}
ONES = dict.fromkeys([*IN_L2, *IN_MAX], at(1.0))
ORDERS = {"order_euler": at(1.0), "order_lie": at(1.0)}
KEPT = {"fidelity_at_I_minus_2_u0": 0.0, "share_violated_with_r_above_1": NEVER, "share_violated_with_r_below_1": NEVER}
ALIKE = {"cosine_of_unrelated_maps_at_weights_0.02": at(0.5), "cosine_of_independent_logits_of_std_0.1": at(1.0)}
GROWS = {
    "growth_rate_64_tokens": 1.0,
    "growth_rate_order_in_1_by_dx": 2.0,
    "share_of_tokens_with_negative_trace": at(0.6),
}


def of_order(p, name, figure, here, there, far=None):
    """A fitted order's lines: how far it may lie from p, that its interval must hold p, and how wide it may be."""
    pairs = [(around(p + s * 0.14, 0.2), around(p + s * 0.16, 0.2)) for s in (1, -1)]
    pairs += [(around(p + s * 0.05, 0.06), around(p + s * 0.05, 0.04)) for s in (1, -1)]
    pairs += [(around(p, 0.49), around(p, 0.51))]
    return [(name, far or {}, figure, kept, here, missed, there) for kept, missed in pairs]


# Claim, evidence far from its lines beside what is stored, a figure, and its values and the verdicts on either side.
LINES = [
    *(line for name in ORDERS for line in of_order(1, "C1", name, HOLDS, IF, ORDERS)),
    ("C2", {}, "distance_to_euler_parallel", upto(0.9e-12), IF, upto(1.1e-12), FAILS),
    ("C2", {}, "distance_to_native_post", upto(0.9e-12), IF, upto(1.1e-12), FAILS),
    *(("C3", SAFE, "limit_for_diffusion_alone", 1 + d, HOLDS, 1 + 1.2 * d, IF) for d in (0.009, -0.009)),
    ("C3", SAFE, "runs_blown_up_with_left_side_at_most_1", 0, HOLDS, 1, FAILS),
    ("C3", SAFE, "share_of_runs_wrongly_called_safe", upto(0.0), HOLDS, upto(1e-9), FAILS),
    ("C4", DAMPED, ENERGIES[0], upto(1 + 0.9e-6), HOLDS, upto(1 + 1.1e-6), FAILS),
    *(("C4", DAMPED, name, upto(1 + 0.9e-6), HOLDS, upto(1 + 1.1e-6), IF) for name in ENERGIES[1:]),
    ("C4", DAMPED, "energy_rate_of_constant_field", -1e-9, HOLDS, 0.0, FAILS),
    *(("C5", ONES, name, upto(1 + 0.9e-12), HOLDS, upto(1 + 1.1e-12), IF) for name in IN_L2),
    *(("C5", ONES | {IN_L2[0]: at(2.0)}, name, upto(1 + 0.9e-12), IF, upto(1 + 1.1e-12), FAILS) for name in IN_MAX),
    ("C6", KEPT, "fidelity_at_I_minus_2_u0", "-0.9e-9", HOLDS, "-1.1e-9", IF),
    ("C6", KEPT, "share_violated_with_r_above_1", upto(0.0), HOLDS, upto(1e-9), IF),
    ("C6", KEPT, "share_violated_with_r_below_1", upto(0.0), HOLDS, upto(1e-9), FAILS),
    ("C7", GROWS, "growth_rate_64_tokens", 0.0, HOLDS, 1e-9, FAILS),
    ("C7", GROWS, "share_of_tokens_with_negative_trace", upto(0.09), IF, upto(0.11), FAILS),
    ("C7", GROWS, "growth_rate_order_in_1_by_dx", 0.99, IF, 1.01, FAILS),
    *(("C8", dict.fromkeys(EXCESS, at(-1.0)), name, upto(0.019), HOLDS, upto(0.021), IF) for name in EXCESS),
    *(("C8", dict.fromkeys(EXCESS, at(-1.0)), name, past(0.019), IF, past(0.021), FAILS) for name in EXCESS),
    *(("C9", dict.fromkeys(SHRINK, at(-1.0)), name, upto(-1e-9), HOLDS, upto(0.0), IF) for name in SHRINK),
    *(("C9", dict.fromkeys(SHRINK, at(-1.0)), SHRINK[i], past(0.0), IF, past(1e-9), FAILS) for i in (1, 5)),
    ("C10", {}, "exact_change_of_information", upto(0.9e-6), FAILS, upto(1.1e-6), IF),
    ("C10", {}, "fall_of_binned_estimate", past(0.009), IF, past(0.011), FAILS),
    ("C11", {}, "order_uniform_incompatible", at(0.49), IF, at(0.51), FAILS),
    *of_order(2, "C11", "order_uniform_incompatible", HOLDS, FAILS),
    *of_order(2, "C11", "order_uniform_compatible", IF, FAILS),
    ("C12", {}, "exponent_in_radius", at(0.19), HOLDS, at(0.21), IF),
    *(("C13", FORGETS, name, upto(1.9), HOLDS, upto(2.1), FAILS) for name in CHANCE),
    ("C13", FORGETS, TURNED, 1e-9, HOLDS, 0.0, IF),
    ("C13", FORGETS | {TURNED: 0.0}, SMALL, upto(0.0), IF, upto(1e-9), FAILS),
    ("C14", ALIKE, "cosine_of_unrelated_maps_at_weights_0.02", past(0.979), IF, past(0.981), FAILS),
    ("C14", ALIKE, "cosine_of_independent_logits_of_std_0.1", past(0.979), HOLDS, past(0.981), IF),
    *(("C16", ABLE, name, at(0.49), FAILS, at(0.5), IF) for name in PHASES),
    ("C16", ABLE, "share_found_where_there_are_three", past(0.8), FAILS, past(0.79), NOT_SHOWN),
    ("C16", ABLE, "share_found_where_there_are_none", upto(0.05), FAILS, upto(0.051), NOT_SHOWN),
    ("C17", {}, "growth_of_the_largest_slope", 1 + 0.9e-3, HOLDS, 1 + 1.1e-3, FAILS),
    *(line for name in ("v1 (8)", "v2 (5)") for line in of_order(2, name, "order_in_dx", DEFINITION, FAILS)),
    *of_order(1, "v1 (24)", "order_in_attention_error", HOLDS, FAILS),
    ("v1 (23)", {}, "distance_as_a_layer", upto(0.9e-10), HOLDS, upto(1.1e-10), IF),
    ("v2 (12)", {}, "largest_error_over_bound", upto(1.0), HOLDS, upto(1.001), FAILS),
    *of_order(2, "v2 (18)", "order_relu_at_kink", HOLDS, IF),
    *of_order(2, "v2 (18)", "order_gelu", IF, FAILS),
    ("v1 (23)", {}, "largest_relative_error_as_a_step", upto(0.9e-10), IF, upto(1.1e-10), FAILS),
    ("v2 (10)", {}, "jump_with_floor_over_step", upto(0.9e-10), IF, upto(1.1e-10), FAILS),
    ("v2 (19)", {}, "error_with_leak_outside", upto(0.9e-10), IF, upto(1.1e-10), FAILS),
]


@pytest.mark.parametrize(("name", "far", "figure", "here", "verdict", "there", "other"), LINES)
def test_where_judges_draw_their_lines(name, far, figure, here, verdict, there, other):
    claim = (CLAIMS | EQUATIONS)[name]
    evidence = MEASURED[claim.rests_on or name] | far
    assert figure in evidence
    if isinstance(here, str):  # beside what is claimed there
        claimed = float(evidence["claimed_at_I_minus_2_u0"])
        here, there = claimed + float(here), claimed + float(there)
    assert (claim.verdict(evidence | {figure: here}), claim.verdict(evidence | {figure: there})) == (verdict, other)


ORDERS_OF_THEORY = [
    *(("C1", f"order_{name}", p) for name, p in (("heun", 2), ("rk4", 4), ("strang_euler", 1), ("strang_heun", 2))),
    ("C1", "iid_spread_exponent_at_scale_1_by_sqrt_L", 0.0),
    ("C1", "iid_spread_exponent_at_scale_1_by_L", -0.5),
    *(("C11", name, 2) for name in ("order_uniform_neumann", "order_incompatible_from_depth_0.01")),
]
# Corrected statements: a figure, its value where they are borne out, and where they are not.
SUPPORTS = [
    ("C1", "order_rk4_relu", past(1.99), past(2.01)),
    *(
        (name, figure, *pair)
        for name, figure, p in ORDERS_OF_THEORY
        for pair in ((around(p + 0.14, 0.2), around(p + 0.16, 0.2)), (around(p - 0.05, 0.06), around(p - 0.05, 0.04)))
    ),
    ("C17", "lipschitz_constant_relu", 1 + 0.9e-6, 1 + 1.1e-6),
    ("C17", "derivative_jump_relu", 1 + 0.9e-6, 1 + 1.1e-6),
    *(("C17", f"derivative_jump_{name}", 0.9e-6, 1.1e-6) for name in ("gelu", "silu", "tanh")),
    ("C17", "order_rk4_relu", upto(2.29), upto(2.31)),
    ("C17", "order_rk4_gelu", around(4.05, 0.06), around(4.05, 0.04)),
    ("C3", "limit_for_diffusion_alone", 1.009, 1.011),
    ("C3", "growth_of_an_isometry_with_G_above_c", 1.001, 1.0),
    ("C15", "gradient_none_over_pre_at_start", past(1.5), past(0.99)),
    ("C15", "gradient_none_over_pre_in_training", upto(1.3), upto(5.6)),
    ("C15", "spikes_none_over_pre", past(0.99), past(1.01)),
    ("C15", "spikes_bare_over_pre", past(1.01), past(0.99)),
    *(("C15", f"gradient_bare_over_pre_{when}", upto(0.99), upto(1.01)) for when in ("at_start", "in_training")),
    ("C16", "fall_of_input_information_fixed_noise", upto(0.09), upto(0.11)),
    ("C16", "fall_of_input_information_relative_noise", past(0.11), past(0.09)),
    *(("C16", f"rise_of_input_information_{kind}_noise", past(0.11), past(0.09)) for kind in ("fixed", "relative")),
]


@pytest.mark.parametrize(("name", "figure", "here", "there"), SUPPORTS)
def test_where_corrected_statements_are_borne_out(name, figure, here, there):
    evidence = MEASURED[name]
    # The factor in training is compared with the lower end of the one at the start.
    far = {"gradient_none_over_pre_in_training": at(0.5)} if figure.endswith("none_over_pre_at_start") else {}
    assert figure in evidence
    found = [CLAIMS[name].support(evidence | far | {figure: x}) for x in (here, there)]
    assert found == ["borne out", "not borne out"]
