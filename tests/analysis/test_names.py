"""The public names of the packages of analyses that differentiate or integrate a field, and where they can be had from."""

import importlib

import pytest

import pdejax

# fmt: off
NAMES = {
    "jacobian": [
        "Eigenvalues", "FTLE", "GradientFlow", "GradientHistory", "Jacobian", "LyapunovExponents", "PerturbationSensitivity",
        "Response", "SingularValues", "ftle", "gaussian_exponents", "gradient_flow", "layer_jacobian", "lyapunov_exponents",
        "lyapunov_of_maps", "marchenko_pastur_cdf", "perturbation_sensitivity", "shuffle_weights", "stack_gradient_flows",
    ],
    "numerics": [
        "ContinuumBounds", "Convergence", "FieldConstants", "OrderFit", "Reference", "SchemeConvergence",
        "continuum_bounds", "convergence",
        "error_floor", "expected_order", "field_constants", "fit_order", "growth_factor", "measure_constants",
        "measure_scheme", "mesh_norm", "solve_reference", "token_max_norm",
    ],
    "stability": [
        "Certificate", "LipschitzEstimate", "SpectralBounds", "StepConstants", "StepMeasurement", "StepPrediction",
        "adversarial_lipschitz", "castin_bound", "corrected_step_bound", "field_lipschitz", "measure_dt_max",
        "one_sided_step_bound", "predict_dt_max", "sampled_lipschitz", "spectral_bounds",
        "stability_factor", "step_constants", "v1_21",
    ],
    "growth": [
        "AntiDiffusion", "EnergyBudget", "Growth", "NegativeFraction", "anti_diffusion", "claimed_energy", "decay_bound",
        "decay_rate", "energy", "energy_budget", "energy_rates", "extinction_time", "frozen_growth", "growth_bound",
        "negative_fraction", "random_negative_fraction",
    ],
}
# fmt: on


@pytest.mark.parametrize("package", NAMES)
def test_names_are_pinned(package):
    module = importlib.import_module(f"pdejax.analysis.{package}")
    names = [name for name in dir(module) if not name.startswith("_")]
    assert names == sorted(NAMES[package])
    functions = [name for name in names if not name[0].isupper()]
    assert len(functions) <= 12
    for name in names:
        thing = getattr(module, name)
        assert thing.__doc__ and len(thing.__doc__) > 20, name
        # Functions are in `pdejax.analysis` as well, records in their package only.
        assert (name in dir(pdejax.analysis)) == (name in functions), name
