"""How fields grow: energy and its budget, growth bounds, and the sign of the emergent diffusivity."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.analysis.growth._diffusivity import anti_diffusion as anti_diffusion
    from pdejax.analysis.growth._diffusivity import negative_fraction as negative_fraction
    from pdejax.analysis.growth._diffusivity import random_negative_fraction as random_negative_fraction
    from pdejax.analysis.growth._energy import claimed_energy as claimed_energy
    from pdejax.analysis.growth._energy import decay_rate as decay_rate
    from pdejax.analysis.growth._energy import energy as energy
    from pdejax.analysis.growth._energy import energy_budget as energy_budget
    from pdejax.analysis.growth._energy import energy_rates as energy_rates
    from pdejax.analysis.growth._energy import extinction_time as extinction_time
    from pdejax.analysis.growth._energy import growth_bound as growth_bound
else:
    __getattr__, __dir__ = _attach(__name__)
