"""Fidelity of a residual flow to its input: bounds, and how it decays with and without residual connections."""

from pdejax.analysis.residual._fidelity import adversarial_update as adversarial_update
from pdejax.analysis.residual._fidelity import decay_difference as decay_difference
from pdejax.analysis.residual._fidelity import fidelity as fidelity
from pdejax.analysis.residual._fidelity import fidelity_bound as fidelity_bound
from pdejax.analysis.residual._fidelity import fidelity_report as fidelity_report
from pdejax.analysis.residual._fidelity import residual_decay as residual_decay
from pdejax.analysis.residual._fidelity import residual_necessity as residual_necessity
from pdejax.analysis.residual._fidelity import residual_ratio as residual_ratio
