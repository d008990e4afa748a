"""Pictures of analyses: `plot(record)` draws what an analysis returned by its own picture.

Each picture is a function too (`trajectory_fidelity(record, "cka", ax=ax)`): it takes the record, draws into `ax` (or a new
figure) and returns the Axes. `ax.figure.savefig("plot.png")` saves one. Colours are told apart by every kind of colour vision,
axes carry units, and the null model is drawn beside the figure it belongs to.
"""

from typing import TYPE_CHECKING

from pdejax._lazy import attach

if TYPE_CHECKING:
    from pdejax.plot._attention import attention_entropy as attention_entropy
    from pdejax.plot._attention import attention_fidelity as attention_fidelity
    from pdejax.plot._attention import attention_maps as attention_maps
    from pdejax.plot._attention import attention_rollout as attention_rollout
    from pdejax.plot._clustering import collapse_rate as collapse_rate
    from pdejax.plot._clustering import consensus_distance as consensus_distance
    from pdejax.plot._clustering import token_clustering as token_clustering
    from pdejax.plot._clustering import token_cosines as token_cosines
    from pdejax.plot._fidelity import decay_difference as decay_difference
    from pdejax.plot._fidelity import layer_correlation as layer_correlation
    from pdejax.plot._fidelity import residual_decay as residual_decay
    from pdejax.plot._fidelity import trajectory_fidelity as trajectory_fidelity
    from pdejax.plot._figure import figure as figure
    from pdejax.plot._gradients import gradient_flow as gradient_flow
    from pdejax.plot._gradients import gradient_history as gradient_history
    from pdejax.plot._gradients import singular_values as singular_values
    from pdejax.plot._information import calibration as calibration
    from pdejax.plot._information import data_processing as data_processing
    from pdejax.plot._information import information_phases as information_phases
    from pdejax.plot._information import information_plane as information_plane
    from pdejax.plot._information import layer_entropy as layer_entropy
    from pdejax.plot._lyapunov import ftle_map as ftle_map
    from pdejax.plot._lyapunov import lyapunov_exponents as lyapunov_exponents
    from pdejax.plot._perturbation import perturbation_response as perturbation_response
    from pdejax.plot._plot import plot as plot
    from pdejax.plot._representation import representation as representation
    from pdejax.plot._spectral import amplitude_spectrum as amplitude_spectrum
    from pdejax.plot._spectral import attention_spectra as attention_spectra
    from pdejax.plot._spectral import low_pass_ratio as low_pass_ratio
    from pdejax.plot._spectral import spectral_similarity as spectral_similarity
else:
    __getattr__, __dir__ = attach(__name__)
