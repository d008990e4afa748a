"""Every verdict is a function of the evidence: with the evidence that is stored it is what the ledger says, and a figure changed
at will changes it."""

import inspect
import json
import math
import pathlib
import re

import pytest

from pdejax import Figure
from pdejax.runs._findings import Finding, Measured, count_verdicts, figures_from_json, headline
from pdejax.studies.claims import CLAIMS, EQUATIONS
from pdejax.studies.claims._claim import high, low
from pdejax.studies.claims._config import CLAIM_IDS, EQUATION_IDS

HOLDS, IF, FAILS = "holds", "holds under an added condition", "fails"
NOT_SHOWN, NOT_MEASURED, DEFINITION = "not shown", "not measured", "definition"
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
    "C1": HOLDS,
    "C17": HOLDS,
    **{name: IF for name in ("C2", "C5", "C6", "C11", "C12", "C13")},
    **{name: FAILS for name in ("C3", "C4", "C7", "C8", "C9", "C10", "C14", "C15")},
    "C16": NOT_SHOWN,
}
ABLE = {"share_found_where_there_are_three": 0.85}
# Other evidence, and what it would say.
PERTURBED = [
    ("C1", {"order_lie": around(0.5)}, IF),
    ("C1", {"order_euler": around(0.5), "order_lie": around(0.0)}, FAILS),
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
    ("C6", {"share_violated_with_r_below_1": around(0.1)}, FAILS),
    ("C6", {"fidelity_at_I_minus_2_u0": 0.0, "share_violated_with_r_above_1": NEVER}, HOLDS),
    ("C7", {"share_of_tokens_with_negative_trace": around(0.05)}, IF),
    ("C7", {"growth_rate_64_tokens": 0.0}, HOLDS),
    ("C8", {"excess_poor_marginal": around(0.02), "excess_two_valued": around(0.02)}, IF),
    ("C8", {"excess_poor_marginal": around(-1.0), "excess_two_valued": around(-1.0)}, HOLDS),
    ("C9", {"weight_norm_change_v1_3": around(-0.2), "information_change_line_33": around(-0.2)}, HOLDS),
    ("C9", {"weight_norm_change_v1_3": around(-0.2), "information_change_line_33": around(0.0)}, IF),
    ("C10", {"exact_change_of_information": around(1.0), "error_of_field_run_back_to_its_input": around(0.5)}, HOLDS),
    ("C10", {"fall_of_binned_estimate": NEVER}, IF),
    ("C11", {"order_uniform_incompatible": around(2.0)}, HOLDS),
    ("C11", {"order_uniform_compatible": around(1.0)}, FAILS),
    ("C12", {"exponent_in_radius": around(0.0)}, HOLDS),
    ("C12", {"bounds_violated": 1}, FAILS),
    ("C13", {"fidelity_of_a_stable_rotation": 0.5}, HOLDS),
    ("C13", {"share_below_bound_with_small_updates": around(0.1)}, FAILS),
    ("C13", {"fidelity_at_16_without_residual_over_chance_scale_1": around(5.0)}, FAILS),
    ("C14", {"cosine_of_unrelated_maps_at_weights_0.02": around(0.4)}, IF),
    (
        "C14",
        {
            "cosine_of_unrelated_maps_at_weights_0.02": around(0.4),
            "cosine_of_independent_logits_of_std_0.1": around(0.4),
        },
        HOLDS,
    ),
    (
        "C15",
        {f"gradient_none_over_pre_{when}": around(10.0) for when in ("at_start", "in_training")}
        | {"spikes_none_over_pre": around(3.0)},
        IF,
    ),
    (
        "C15",
        {f"gradient_bare_over_pre_{when}": around(10.0) for when in ("at_start", "in_training")}
        | {"spikes_bare_over_pre": around(3.0)},
        HOLDS,
    ),
    ("C15", {"loss_at_the_end_pre": around(2.1)}, NOT_SHOWN),
    ("C16", {"share_found_where_there_are_three": 0.85}, FAILS),
    ("C16", ABLE | {"share_with_three_phases_fixed_noise": around(0.8)}, IF),
    ("C16", ABLE | {f"share_with_three_phases_{k}_noise": around(0.8) for k in ("fixed", "relative")}, HOLDS),
    ("C17", {"growth_of_the_largest_slope": 10.0}, FAILS),  # of σ(z) = z²
]


# "About ten times" means more than 10/3: evidence on either side of where C15's judge draws its lines.
def ten(kind, value=10.0, half=0.02, spikes=1.03):
    """All that is claimed of a kind of network: gradients at the start and in training, and spikes."""
    gradients = {f"gradient_{kind}_over_pre_{when}": around(value, half) for when in ("at_start", "in_training")}
    return gradients | {f"spikes_{kind}_over_pre": around(spikes)}


BOTH = ten("none") | ten("bare") | {"loss_at_the_end_pre": around(1.0)}
C15_LINES = [
    ({}, HOLDS),
    # Each figure alone, whose lower end counts: at the start, in training, spikes.
    *(
        (missed | {figure: around(value)}, verdict)
        for kind, missed, met, other in (("bare", {}, HOLDS, IF), ("none", ten("bare", 1.0), IF, FAILS))
        for figure, lines in (
            (f"gradient_{kind}_over_pre_at_start", (3.34, 3.37)),
            (f"gradient_{kind}_over_pre_in_training", (3.34, 3.37)),
            (f"spikes_{kind}_over_pre", (1.01, 1.03)),
        )
        for value, verdict in zip(lines, (other, met), strict=True)
    ),
    (ten("bare", 20.0, half=17.0), IF),
    (ten("none", 3.3) | ten("bare", 3.3), FAILS),
    # The start alone: what was measured once, with ten times as many spikes.
    (
        ten("bare", 0.5)
        | {"gradient_none_over_pre_in_training": around(1.85, 0.35), "spikes_none_over_pre": around(10)},
        FAILS,
    ),
    ({"loss_at_the_end_pre": around(1.14)}, NOT_SHOWN),  # half of ln 10 is 1.151
    ({"loss_at_the_end_pre": around(1.12)}, HOLDS),
]


@pytest.mark.parametrize(("figures", "verdict"), C15_LINES)
def test_where_c15_draws_its_lines(figures, verdict):
    assert CLAIMS["C15"].verdict(MEASURED["C15"] | BOTH | figures) == verdict


@pytest.mark.parametrize("name", [*CLAIMS, *EQUATIONS])
def test_stored_evidence_gives_the_stored_verdict(name):
    claim, saved = (CLAIMS | EQUATIONS)[name], STORED[name]
    evidence = MEASURED[claim.rests_on or name]
    assert claim.verdict(evidence) == saved["verdict"] and claim.support(evidence) == saved["support"]
    assert saved["verdict"] == VERDICTS.get(name, saved["verdict"])
    words = ("statement", "quote", "rule", "condition")
    assert [getattr(claim, key) for key in words] == [saved[key] for key in words]
    assert (claim.source if claim.rests_on is None else claim.rests_on) == saved["source"]
    assert saved["code"] == (CLAIMS[claim.rests_on] if claim.rests_on else claim).code
    assert set(claim.headline) <= set(MEASURED[name])


@pytest.mark.parametrize(("name", "figures", "verdict"), PERTURBED)
def test_other_figures_give_another(name, figures, verdict):
    assert figures.keys() <= MEASURED[name].keys()
    assert verdict != VERDICTS[name]
    assert CLAIMS[name].verdict(MEASURED[name] | figures) == verdict


@pytest.mark.parametrize(("figures", "verdict"), [({}, FAILS), ({"share_found_where_there_are_three": 0.75}, NOT_SHOWN),
                                                  ({"share_found_where_there_are_none": 0.1}, NOT_SHOWN)])  # fmt: skip
def test_c16_says_nothing_without_power(figures, verdict):
    assert CLAIMS["C16"].verdict(MEASURED["C16"] | ABLE | figures) == verdict


@pytest.mark.parametrize("name", CLAIMS)
def test_every_verdict_of_a_judge_is_reached(name):
    """Those that its code names: one from the stored evidence, the others from perturbed evidence."""
    judge = inspect.unwrap(CLAIMS[name].judge)
    named = {NAMES[word] for word in judge.__code__.co_names if word in NAMES}
    assert {VERDICTS[name]} | {verdict for other, _, verdict in PERTURBED if other == name} == named


NAMES = {"HOLDS": HOLDS, "CONDITIONAL": IF, "FAILS": FAILS, "NOT_SHOWN": NOT_SHOWN, "DEFINITION": DEFINITION}


@pytest.mark.parametrize("missing", [math.nan, Figure(math.nan), None, math.inf, Figure(-math.inf)])
@pytest.mark.parametrize("name", [*CLAIMS, *EQUATIONS])
def test_what_is_no_number_is_no_evidence(name, missing):
    claim = (CLAIMS | EQUATIONS)[name]
    evidence = MEASURED[claim.rests_on or name]
    nothing = {key: missing for key in evidence}
    assert claim.verdict(nothing) == claim.verdict({}) == NOT_MEASURED
    if claim.bears_out is not None:
        assert claim.support(nothing) == claim.support({}) == NOT_MEASURED
    # One figure alone that is missing may change nothing, where it is not needed; never the verdict for the better.
    for key in evidence:
        assert claim.verdict(evidence | {key: missing}) in (NOT_MEASURED, claim.verdict(evidence))


@pytest.mark.parametrize("name", CLAIMS)
def test_intervals_of_bounded_figures_stay_in_their_range(name):
    """Shares and cosines that cannot be negative, and differences of the latter."""
    for key, figure in MEASURED[name].items():
        if isinstance(figure, Figure) and key.startswith(
            ("share_", "fidelity_", "cosine_", "copy_above_", "worst_energy_over_")
        ):
            ends = (-1 if key.startswith("copy_") else 0, math.inf if "_over_" in key else 1)
            assert ends[0] <= low(figure) <= float(figure) <= high(figure) <= ends[1], key


def test_ends_of_an_interval_are_taken_as_they_are():
    """An infinite end is an end; half an interval is none; a number without one stands for itself."""
    assert (low(Figure(1.0, -math.inf, math.inf)), high(Figure(1.0, -math.inf, math.inf))) == (-math.inf, math.inf)
    assert low(Figure(1.0)) == high(Figure(1.0)) == low(1.0) == 1.0
    for half in (Figure(0.0, math.nan, 0.0), Figure(0.0, 0.0, math.nan)):
        assert (
            CLAIMS["C3"].verdict(MEASURED["C3"] | {"share_of_runs_wrongly_called_safe": half}) == FAILS
        )  # not asked for
        evidence = MEASURED["C3"] | {"runs_blown_up_with_left_side_at_most_1": 0}
        assert CLAIMS["C3"].verdict(evidence | {"share_of_runs_wrongly_called_safe": half}) == NOT_MEASURED
    never = Figure(0.0, -math.inf, math.inf)
    assert CLAIMS["C6"].verdict(MEASURED["C6"] | {"share_violated_with_r_below_1": never}) == FAILS


def test_an_equation_shows_a_dash_for_what_its_claim_lacks():
    equation = next(e for e in EQUATIONS.values() if e.rests_on is not None)
    other = Finding(equation.rests_on, "", "", HOLDS, "", Measured({}))
    found = equation.finding_from(other)
    assert found.verdict == NOT_MEASURED and headline(found).endswith(" –") and "–" in repr(found)


# Of each corrected statement a figure that would contradict it.
CONTRADICTED = {
    "C1": {"iid_spread_exponent_at_scale_1_by_sqrt_L": around(-0.5)},
    "C2": {"distance_to_native_post": around(0.1)},
    "C3": {"corrected_share_wrongly_called_safe": around(0.1)},
    "C4": {"worst_energy_over_claim_linear_damping": around(1.5)},
    "C5": {"largest_max_norm_random": Figure(1.0, 1.0, 1.1)},
    "C6": {"share_sharp_violated": around(0.1)},
    "C7": {"growth_rate_of_nonnegative_forms_over_raw": 0.1},
    "C8": {"club_excess": around(-1.0)},
    "C9": {"information_change_v1_14": around(0.1)},
    "C10": {"largest_rise_along_a_noisy_chain": around(0.5)},
    "C11": {"order_incompatible_from_depth_0.01": around(0.5)},
    "C12": {"bounds_violated": 1},
    "C13": {"share_below_bound_with_small_updates": around(0.1)},
    "C14": {"copy_above_null_at_weights_0.02": around(0.0)},
    "C15": {"gradient_bare_over_pre_at_start": around(2.0)},
    "C16": {"fall_of_input_information_fixed_noise": around(1.0)},
    "C17": {"order_rk4_gelu": around(2.0)},
}


@pytest.mark.parametrize("name", CLAIMS)
def test_corrected_statements_follow_their_own_figures(name):
    claim, evidence = CLAIMS[name], MEASURED[name]
    assert claim.condition and claim.support(evidence) == "borne out"
    assert CONTRADICTED[name].keys() <= evidence.keys()
    assert claim.support(evidence | CONTRADICTED[name]) == "not borne out"


# Words without which a quote leaves a hypothesis of the paper out, or what the sentence is about.
HYPOTHESES = {
    "C1": ("Temporal Consistency", "Uniform Lipschitz Continuity"),
    "C7": ("≈", "Green’s first identity"),
    "C10": ("Viewed through the lens of the Information Bottleneck", "stochasticity from data sampling"),
    "C13": ("like cosine similarity", "in high dimensions", "Under the stability conditions from Theorem 3.3"),
    "C15": (
        "across training",
        "frequent gradient spikes",
        "omits explicit residual connections and layer normalization",
    ),
    "C16": ("Viewed through the lens of the Information Bottleneck", "stochasticity from data sampling"),
    "C17": ("satisfy Lipschitz continuity",),
    "v1 (24)": ("p, q are the orders of the discretization methods",),
    "v2 (3)": ("Lipschitz continuity and smoothness with respect to ℓ",),
    "v2 (9)": ("can be approximated", "γ(x, t)"),
    "v2 (12)": ("Uniform Lipschitz Continuity", "Temporal Consistency"),
    "v2 (15)": ("γ > 0 is the effective dissipation rate",),
    "v2 (18)": ("≈",),
}


@pytest.mark.parametrize("name", [*CLAIMS, *EQUATIONS])
def test_every_claim_and_equation_is_quoted_and_judged_by_a_written_rule(name):
    """By section; every equation in words of its own paper that have its number nowhere else."""
    claim = (CLAIMS | EQUATIONS)[name]
    places = re.findall(r"\((v[12]) (?:§\d|App\. B|A\.|Algorithm 1)", claim.quote)
    assert places and len(claim.quote) > 60 and claim.rule
    assert all(words in claim.quote for words in HYPOTHESES.get(name, ()))
    if name in CLAIMS:
        assert len(claim.rule) > 60
    else:
        assert set(places) == {name.split()[0]}


def test_no_two_equations_have_the_same_quote():
    assert len({equation.quote for equation in EQUATIONS.values()}) == len(EQUATIONS) == 43
    assert set(HYPOTHESES) <= set(CLAIMS) | set(EQUATIONS)


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
    """With the claim's figures v1 (14), v2 (3) and v2 (11) hold as printed; with other figures each says something else."""
    equation = EQUATIONS[name]
    verdict = equation.verdict(MEASURED[equation.rests_on])
    assert (verdict == HOLDS) == (name in ("v1 (14)", "v2 (3)", "v2 (11)"))
    perturbed = [figures for claim, figures, _ in PERTURBED if claim == equation.rests_on]
    perturbed += [CONTRADICTED[equation.rests_on]]
    assert any(equation.verdict(MEASURED[equation.rests_on] | figures) != verdict for figures in perturbed)


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
    assert EQUATIONS[name].verdict(MEASURED[name]) != EQUATIONS[name].verdict(MEASURED[name] | OWN[name])


def test_identities_and_definitions_share_a_judgement():
    shared = [e for e in EQUATIONS.values() if e.headline == ("largest_relative_error",)]
    assert len(shared) > 15
    for equation in shared:
        assert equation.verdict({"largest_relative_error": TINY}) in (HOLDS, DEFINITION)
        assert equation.verdict({"largest_relative_error": around(0.1)}) == FAILS
    assert EQUATIONS["v1 (1)"].verdict({"largest_relative_error": TINY}) == DEFINITION
    assert EQUATIONS["v1 (22)"].verdict({"largest_relative_error": TINY}) == HOLDS


def test_claims_and_equations_are_counted_apart():
    found = [Finding(name, "", "", verdict, "", Measured({})) for name, verdict in
             (("C1", HOLDS), ("C2", FAILS), ("C3", FAILS), ("v1 (1)", DEFINITION))]  # fmt: skip
    assert count_verdicts(found) == "3 claims: 1 holds, 2 fails; 1 equations: 1 definition"
