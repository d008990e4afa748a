"""The public names of the analyses of states, attention, spectra, tokens, residual flows and information, and of the pictures."""

import importlib
import inspect

import pytest

import pdejax as pj

NAMES = {
    "analysis.similarity": """LayerCorrelation TrajectoryFidelity adjacent_correlation input_correlation layer_correlation
        linear_cka mean_squared_error pearson procrustes_distance relative_error sequence_cosine spearman token_cosine
        trajectory_fidelity""",
    "analysis.attention": """AttentionEntropy AttentionFidelity AttentionRollout attention_cosine attention_divergence
        attention_entropy attention_fidelity attention_rollout""",
    "analysis.spectra": """AmplitudeSpectrum AttentionSpectra CircuitSpectrum LowPass SpectralSimilarity amplitude_spectrum
        attention_spectra low_pass_ratio spectral_similarity white_noise_similarity""",
    "analysis.tokens": """CollapseRate Representation TokenClustering collapse_rate effective_rank representation
        token_clustering""",
    "analysis.residual": """DecayDifference FidelityReport ResidualDecay adversarial_update claimed_fidelity decay_difference
        fidelity fidelity_report residual_decay residual_necessity residual_ratio sharp_fidelity""",
    "analysis.information": """Estimate InformationPlane LayerEntropy Phases Processing channels data_processing entropy
        estimators information_phases information_plane layer_entropy layer_spread mutual_information trained unit_spread""",
    "analysis.information.channels": """Calibration Channel Pairs binary_symmetric_channel calibration class_channel
        diffusion_channel discrete_channel gaussian_channel standard_channels standard_estimators transformed""",
    "analysis.information.estimators": """binned_information gaussian_entropy gaussian_information kde_information
        ksg_information""",
    "analysis.information.trained": """AbstractInformation BarberAgakov CLUB ConditionalGaussian InfoNCE PaperEstimate fit
        trained_information""",
    "plot": "plot",
}


@pytest.mark.parametrize("package", NAMES)
def test_public_names_are_pinned_and_documented(package):
    module = importlib.import_module(f"pdejax.{package}")
    expected = NAMES[package].split()
    # The type checker of the tests puts its own name into every module.
    found = [name for name in dir(module) if not name.startswith("_") and name != "jaxtyping"]
    assert sorted(name for name in found if name not in expected) == []
    assert sorted(expected) == expected
    for name in expected:
        thing = getattr(module, name)
        assert inspect.getdoc(thing) and len(thing.__doc__) > 20, name


def test_functions_of_the_packages_are_those_of_analysis():
    """Users find every analysis in `pdejax.analysis`; records live in its packages."""
    deep = ("analysis.information.channels", "analysis.information.estimators", "analysis.information.trained")
    for package, names in NAMES.items():
        if package.startswith("analysis.") and package not in deep:
            module = importlib.import_module(f"pdejax.{package}")
            for name in names.split():
                if inspect.isfunction(getattr(module, name)):
                    assert getattr(pj.analysis, name) is getattr(module, name)
