"""Every numbered equation of the papers: what it says, which evidence it rests on, and the verdict from it."""

import dataclasses
from collections.abc import Callable

from pdejax.runs._findings import CONDITIONAL, DEFINITION, FAILS, HOLDS, Evidence, Verdict
from pdejax.studies.claims import _equations_v1 as first
from pdejax.studies.claims import _equations_v2 as second
from pdejax.studies.claims._c1_continuum import C1
from pdejax.studies.claims._c2_residual import update_rule
from pdejax.studies.claims._c3_step import C3
from pdejax.studies.claims._c4_energy import C4
from pdejax.studies.claims._c6_fidelity import C6
from pdejax.studies.claims._c7_diffusivity import C7
from pdejax.studies.claims._c8_estimate import C8
from pdejax.studies.claims._c11_boundary import C11
from pdejax.studies.claims._claim import Claim, high, near
from pdejax.studies.claims._quotes import QUOTES

ROUNDING = 1e-10


def exact(evidence: Evidence) -> Verdict:
    """An identity: equal to rounding, in every seed."""
    return HOLDS if high(evidence["largest_relative_error"]) <= ROUNDING else FAILS


def defined(evidence: Evidence) -> Verdict:
    """A definition, which the library computes as printed, to rounding, in every seed."""
    return DEFINITION if high(evidence["largest_relative_error"]) <= ROUNDING else FAILS


def sampled(evidence: Evidence) -> Verdict:
    """A definition, which the library computes as printed to second order in Δx: the order's interval holds 2."""
    return DEFINITION if near(evidence["order_in_dx"], 2) else FAILS


def orders(**expected: int) -> Callable[[Evidence], Verdict]:
    """A judge of orders, which must be as expected."""

    def judge(evidence: Evidence) -> Verdict:
        """The interval of every fitted order holds what is expected, and is centred within 0.15 of it."""
        return HOLDS if all(near(evidence[name], p) for name, p in expected.items()) else FAILS

    return judge


def regularizes(evidence: Evidence) -> Verdict:
    """The weights shrink, surely."""
    return HOLDS if high(evidence["weight_norm_change_v1_3"]) < 0 else FAILS


def descends(evidence: Evidence) -> Verdict:
    """The weights shrink and the information falls, surely."""
    names = ("weight_norm_change_v1_14", "information_change_v1_14")
    return HOLDS if all(high(evidence[name]) < 0 for name in names) else FAILS


def step_jacobian(evidence: Evidence) -> Verdict:
    """As the derivative of one step, and as the derivative from layer to layer that is printed."""
    step = high(evidence["largest_relative_error_as_a_step"]) <= ROUNDING
    layer = high(evidence["distance_as_a_layer"]) <= ROUNDING
    return HOLDS if step and layer else CONDITIONAL if step else FAILS


def unit_variance(evidence: Evidence) -> Verdict:
    """Whether the field ends at mean 0 and variance 1."""
    found = abs(evidence["mean_at_the_end"]) < 0.05 and abs(evidence["deviation_at_the_end"] - 1) < 0.05
    return HOLDS if found else FAILS


def interpolant(evidence: Evidence) -> Verdict:
    """Continuous as printed; else, with ⌊τ⌋ in place of ⌈τ⌉, if that one is."""
    if high(evidence["jump_as_printed_over_step"]) <= ROUNDING:
        return HOLDS
    return CONDITIONAL if high(evidence["jump_with_floor_over_step"]) <= ROUNDING else FAILS


def bounded(evidence: Evidence) -> Verdict:
    """No error exceeds its bound, in any seed."""
    return HOLDS if high(evidence["largest_error_over_bound"]) <= 1 else FAILS


def taylor(evidence: Evidence) -> Verdict:
    """Second order for a smooth activation; conditional if ReLU has less where it bends."""
    if not near(evidence["order_gelu"], 2):
        return FAILS
    return HOLDS if near(evidence["order_relu_at_kink"], 2) else CONDITIONAL


def heads(evidence: Evidence) -> Verdict:
    """With the leak outside the sum, and as printed with A_h of (5)."""
    if high(evidence["error_with_leak_outside"]) > ROUNDING:
        return FAILS
    return HOLDS if high(evidence["distance_with_leak_in_every_head"]) <= ROUNDING else CONDITIONAL


ERROR = ("largest_relative_error",)
FLOW = ("order_euler", "order_lie")
NEGATIVE = ("share_of_tokens_with_negative_trace", "growth_rate_order_in_1_by_dx")

# fmt: off
_ALL = (
    Claim("v1 (1)", "∂u/∂t = D∇²u + αA(u) + R(u): the master equation is the sum of its terms, as `MasterEquation` has it",
             ERROR, defined, measure=first.master),
    Claim("v1 (2)", "A(u) = softmax(QKᵀ/√d_k)V, as `Attention` has it", ERROR, defined, measure=first.attention),
    Claim("v1 (3)", "+λθ is L2 regularization", ("weight_norm_change_v1_3",), regularizes,
             "the sign is reversed: −λθ, as in (14)", rests_on="C9"),
    Claim("v1 (4)", "layers coupled by C_{l−1,l} and −C_{l,l+1}, as `MultilayerEquation` has it", ERROR, defined,
             measure=first.coupled),
    Claim("v1 (5)", "the same as (1)", ERROR, defined, measure=first.master),
    Claim("v1 (6)", "u(x, 0) = u₀(x): a trajectory starts at the field it is given", ERROR, defined, measure=first.initial),
    Claim("v1 (7)", "u(0, t) = u(L, t) = 0", ("order_uniform_incompatible", "order_uniform_compatible"), C11.judge,
             "for embeddings that are 0 at both ends, without LayerNorm", rests_on="C11"),
    Claim("v1 (8)", "D∇²u; on tokens to second order in Δx (x has one dimension: the printed sum to d is over features)",
             ("order_in_dx",), sampled, measure=first.laplacian),
    Claim("v1 (9)", "A(u) = Concat(heads)W^O, as `Attention` has it", ERROR, defined, measure=first.attention),
    Claim("v1 (10)", "head_i = softmax(Q_iK_iᵀ/√d_k)V_i", ERROR, defined, measure=first.attention),
    Claim("v1 (11)", "Q_i = uW_i^Q and so on", ERROR, defined, measure=first.attention),
    Claim("v1 (12)", "R = FFN(u) + g(x, t), as `FeedForward` has it", ERROR, defined, measure=first.reaction),
    Claim("v1 (13)", "FFN(u) = max(0, uW₁ + b₁)W₂ + b₂", ERROR, defined, measure=first.reaction),
    Claim("v1 (14)", "−η∇L − λθ − β∇Ĩ balances the task, small weights and compression",
             ("weight_norm_change_v1_14", "information_change_v1_14"), descends, rests_on="C9"),
    Claim("v1 (15)", "L = E ℓ: the loss of a batch is the mean of the losses of its parts", ERROR, defined, measure=first.loss),
    Claim("v1 (16)", "Ĩ is a variational lower bound of I(X; T)", ("excess_poor_marginal", "excess_two_valued"),
             C8.judge, "neither bound: Ĩ = I − KL + KL", rests_on="C8"),
    Claim("v1 (17)", "the same as (4)", ERROR, defined, measure=first.coupled),
    Claim("v1 (18)", "C_{l−1,l}(u) = Wu + b: what a layer receives", ERROR, defined, measure=first.coupled),
    Claim("v1 (19)", "C_{l,l+1}(u) = Wu + b: what it gives away", ERROR, defined, measure=first.coupled),
    Claim("v1 (20)", "the discrete system is an explicit Euler step of (17)", ERROR, defined, measure=first.discrete),
    Claim("v1 (21)", "2DΔt/Δx² + αΔt‖W^O‖₂ ≤ 1 suffices",
             ("runs_blown_up_with_left_side_at_most_1", "share_of_runs_wrongly_called_safe"), C3.judge,
             "h ≤ 2/(4D/Δx² + c + G) for G ≤ c", rests_on="C3"),
    Claim("v1 (22)", "gradients pass from layer to layer by the chain rule", ERROR, exact, measure=first.chain),
    Claim("v1 (23)", "∂u_{l+1}/∂u_l = I + Δt(D∇² + α∂A + ∂R − ∂C)",
             ("largest_relative_error_as_a_step", "distance_as_a_layer"), step_jacobian,
             "it is ∂u_l^{n+1}/∂u_l^n, the derivative of a step; from layer l to l + 1 of the coupled system it is Δt·W",
             measure=first.jacobian),
    Claim("v1 (24)", "error ≤ C₁Δt^p + C₂Δx^q + C₃ε_att", ("order_in_dt", "order_in_dx", "order_in_attention_error"),
             orders(order_in_dt=1, order_in_dx=2, order_in_attention_error=1), "p = 1 (Euler), q = 2", measure=first.errors),
    Claim("v2 (1)", "the same as (4)", ERROR, defined, measure=second.master),
    Claim("v2 (2)", "u(x, 0) = E + P, as `Transformer.embed` has it", ERROR, defined, measure=second.embedding),
    Claim("v2 (3)", "∂u/∂t = F(u, t) is the limit of deep Transformers whose layers are smooth in ℓ", FLOW, C1.judge,
             rests_on="C1"),
    Claim("v2 (4)", "∂u/∂t = A + R + D + S, as `MasterEquation` has it", ERROR, defined, measure=second.master),
    Claim("v2 (5)", "A(u) = ∫K W_V u dy − u; on tokens, with quadrature weights, to second order in Δx",
             ("order_in_dx", "largest_row_sum_error"), sampled, measure=second.interaction),
    Claim("v2 (6)", "R(u) = FFN(u) − u, as `FeedForward` has it", ERROR, defined, measure=second.reaction),
    Claim("v2 (7)", "networks and positions act as a diffusion", NEGATIVE, C7.judge,
             "for a non-negative D_eff", rests_on="C7"),
    Claim("v2 (8)", "D_eff ∝ |∇P|² Tr(∂FFN) σ²_att is a diffusion coefficient", NEGATIVE, C7.judge,
             "where the trace is not negative", rests_on="C7"),
    Claim("v2 (9)", "S drives the field towards mean 0 and variance 1", ("mean_at_the_end", "deviation_at_the_end"),
             unit_variance, "for constant γ the mean is not moved, and the deviation falls to 0 in finite depth, σ₀/γ, for ε → 0",
             measure=second.normalization),
    Claim("v2 (10)", "u^L is the piecewise linear interpolant of the layers (⌈τ⌉ may be an error of the text's conversion)",
             ("jump_as_printed_over_step", "jump_with_floor_over_step"), interpolant, "with ⌊τ⌋ in place of the printed ⌈τ⌉",
             measure=second.interpolation),
    Claim("v2 (11)", "(H⁺ − H)/Δt = F, which H⁺ = H + Δt F implies: an identity, whatever F is",
             ("distance_to_euler_parallel",), update_rule, rests_on="C2"),
    Claim("v2 (12)", "error ≤ (C₁ sup‖F_l − F‖ + C₂Δt)e^{λT}", ("largest_error_over_bound",), bounded,
             "C₁ = T, C₂ = ½T sup‖u″‖", measure=second.apriori),
    Claim("v2 (13)", "E = ½∫‖u‖²dx, as `energy` has it", ERROR, defined, measure=second.energy),
    Claim("v2 (14)", "dE/dt = ∫⟨u, A + R + D + S⟩dx", ERROR, exact, measure=second.energy),
    Claim("v2 (15)", "dE/dt ≤ 2(L_A + L_R − γ)E", ("energy_over_claim_outside_basin", "energy_rate_of_constant_field"),
             C4.judge, "for S = −γu", rests_on="C4"),
    Claim("v2 (16)", "u(t) = u₀ + ∫F", ERROR, exact, measure=second.integral),
    Claim("v2 (17)", "ρ ≥ (‖u₀‖ − ‖I‖)/(‖u₀‖ + ‖I‖)", ("fidelity_at_I_minus_2_u0", "claimed_at_I_minus_2_u0"),
             C6.judge, "for ‖I‖ < ‖u₀‖, where √(1 − r²) is sharp", rests_on="C6"),
    Claim("v2 (18)", "FFN(u + P) = FFN(u) + J P + O(‖P‖²)", ("order_gelu", "order_relu_at_kink"), taylor,
             "for smooth activations; with ReLU the remainder is O(‖P‖) where a unit bends", measure=second.expansion),
    Claim("v2 (19)", "A = W_O Σ_h A_h", ("error_with_leak_outside", "distance_with_leak_in_every_head"), heads,
             "with the −u of (5) once, outside the sum: inside, it would become −H W_O u", measure=second.heads),
)
# fmt: on
EQUATIONS: dict[str, Claim] = {e.id: dataclasses.replace(e, quote=QUOTES[e.id]) for e in _ALL}
