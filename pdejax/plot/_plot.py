"""One function for every picture: `plot` looks at the record it is given."""

import importlib
from collections.abc import Mapping
from typing import Any

from pdejax._arguments import checked
from pdejax._check import choice

# Of every record its pictures by name, the first drawn if none is named: module of this package and function. Names rather than
# types, so that a picture loads the analysis it belongs to and no other.
PICTURES: dict[str, dict[str, tuple[str, str]]] = {
    "Figure": {"by layer": ("_states", "figure")},
    "TrajectoryFidelity": {"by layer": ("_states", "trajectory_fidelity")},
    "LayerCorrelation": {"by layer": ("_states", "layer_correlation")},
    "ResidualDecay": {"over depth": ("_states", "residual_decay")},
    "DecayDifference": {"over depth": ("_states", "decay_difference")},
    "AttentionFidelity": {"by layer": ("_attention", "attention_fidelity")},
    "AttentionEntropy": {"by layer": ("_attention", "attention_entropy")},
    "AttentionRollout": {"by layer": ("_attention", "attention_rollout")},
    "AmplitudeSpectrum": {"spectra": ("_states", "amplitude_spectrum")},
    "SpectralSimilarity": {"by layer": ("_states", "spectral_similarity")},
    "LowPass": {"by layer": ("_states", "low_pass_ratio")},
    "AttentionSpectra": {"eigenvalues": ("_states", "attention_spectra")},
    "TokenClustering": {
        "by layer": ("_states", "token_clustering"),
        "cosines": ("_states", "token_cosines"),
        "distances": ("_states", "consensus_distance"),
    },
    "CollapseRate": {"over depth": ("_states", "collapse_rate")},
    "Representation": {"by layer": ("_states", "representation")},
    "GradientFlow": {"over depth": ("_dynamics", "gradient_flow")},
    "GradientHistory": {"over training": ("_dynamics", "gradient_history")},
    "SingularValues": {"shares": ("_dynamics", "singular_values")},
    "LyapunovExponents": {"exponents": ("_dynamics", "lyapunov_exponents")},
    "LoopBehaviour": {"steps": ("_loops", "loop_behaviour")},
    "LoopSpectrum": {"eigenvalues": ("_loops", "loop_spectrum")},
    "SafeRange": {"answers kept": ("_loops", "safe_range")},
    "FTLE": {"tokens": ("_dynamics", "ftle_map")},
    "PerturbationSensitivity": {"responses": ("_dynamics", "perturbation_response")},
    "Calibration": {"errors": ("_information", "calibration")},
    "InformationPlane": {"plane": ("_information", "information_plane")},
    "Processing": {"by layer": ("_information", "data_processing")},
    "LayerEntropy": {"by layer": ("_information", "layer_entropy")},
    "Phases": {"pieces": ("_information", "information_phases")},
}


@checked
def plot(record: Any, *others: Any, picture: str | None = None, ax: Any = None, **options: Any) -> Any:
    """Draw what an analysis returned, and return the Axes (an array of them where the picture has several panels).

    - `record`: a record of `pdejax.analysis`, or a [`Figure`][pdejax.Figure] `(layers,)`. Several of one kind by their names in a
      dict, where one picture shows them (correlations, decays, amplitude spectra). Two attention maps `(n, n)`, `plot(p, q)`,
      beside each other.
    - `picture`: which of a record's pictures, the first by default: `plot(clustering, picture="cosines")`.
    - `ax`: Axes to draw into, as many as the picture has; a new figure by default, which no window holds.
    - `options`: of the picture, such as `plot(fidelity, measure="cka")`, `plot(spectrum, layer=0)`, `plot(answer, of="loss")`.

    `plot(record).figure.savefig("plot.png")` saves a picture of one panel. Colours are told apart by every kind of colour
    vision, axes carry units, and null models are drawn beside what they belong to.

    Raises `TypeError` for what has no picture, `ValueError` for a picture or an option's value that there is not.
    """
    first = next(iter(record.values()), None) if isinstance(record, Mapping) else record
    known = PICTURES.get(type(first).__name__) if type(first).__module__.split(".")[0] == "pdejax" else None
    if known is None and not others:
        raise TypeError(
            f"plot: record is a {type(first).__name__}, which has no picture; give one of {', '.join(PICTURES)}, or two "
            "attention maps."
        )
    if known is None:
        module, name = "_attention", "attention_maps"
    else:
        module, name = known[choice("plot", "picture", picture, known) if picture is not None else next(iter(known))]
    draw = getattr(importlib.import_module(f"pdejax.plot.{module}"), name)
    if isinstance(record, Mapping) and name == "amplitude_spectrum":
        options = {"labels": list(record), **options}
        return draw(*record.values(), ax=ax, **options)
    return draw(record, *others, ax=ax, **options)
