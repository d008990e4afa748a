"""Closed-form solutions and exact figures (THEORY §5), independent of the solvers and terms that they
check.

All in the floating type of their arguments: for float64 switch on `jax_enable_x64`. All but the counts and
names work under `jit` and `vmap`; arguments described as broadcasting may be arrays of any one shape,
beside scalars. Values are checked when they are known, not when traced.
"""

from pdejax.exact._attention import consensus_exponents as consensus_exponents
from pdejax.exact._attention import equiangular_cosine as equiangular_cosine
from pdejax.exact._attention import equiangular_rate as equiangular_rate
from pdejax.exact._attention import equiangular_tokens as equiangular_tokens
from pdejax.exact._attention import gaussian_blowup_time as gaussian_blowup_time
from pdejax.exact._attention import gaussian_quadrature_tokens as gaussian_quadrature_tokens
from pdejax.exact._attention import gaussian_token_variance as gaussian_token_variance
from pdejax.exact._attention import interaction_energy as interaction_energy
from pdejax.exact._attention import interaction_energy_rate as interaction_energy_rate
from pdejax.exact._attention import preln_equiangular as preln_equiangular
from pdejax.exact._attention import preln_equiangular_rates as preln_equiangular_rates
from pdejax.exact._attention import sphere_attention as sphere_attention
from pdejax.exact._heat import bivariate_normal_information as bivariate_normal_information
from pdejax.exact._heat import diffusion_channel_information as diffusion_channel_information
from pdejax.exact._heat import heat_eigenvalues as heat_eigenvalues
from pdejax.exact._heat import heat_mode as heat_mode
from pdejax.exact._heat import heat_solution as heat_solution
from pdejax.exact._heat import mode_amplitudes as mode_amplitudes
from pdejax.exact._heat import mode_sum as mode_sum
from pdejax.exact._linear import linear_master_equation as linear_master_equation
from pdejax.exact._linear import linear_reaction as linear_reaction
from pdejax.exact._linear import sphere_retraction_single_token as sphere_retraction_single_token
from pdejax.exact._linear import uniform_attention as uniform_attention
from pdejax.exact._noise import antipodal_probability as antipodal_probability
from pdejax.exact._noise import circle_mode_rate as circle_mode_rate
from pdejax.exact._noise import random_linear_moments as random_linear_moments
from pdejax.exact._noise import sphere_noise_cosine as sphere_noise_cosine
from pdejax.exact._noise import two_token_critical_beta as two_token_critical_beta
from pdejax.exact._noise import two_token_exponents as two_token_exponents
from pdejax.exact._noise import two_token_rates as two_token_rates
from pdejax.exact._spatial_norm import spatial_norm_basin_radius as spatial_norm_basin_radius
from pdejax.exact._spatial_norm import spatial_norm_growth_radius as spatial_norm_growth_radius
from pdejax.exact._spatial_norm import spatial_norm_radius as spatial_norm_radius
from pdejax.exact._spatial_norm import spatial_norm_solution as spatial_norm_solution
from pdejax.exact._spatial_norm import spatial_norm_time as spatial_norm_time
from pdejax.exact._stability import diffusive_step_limit as diffusive_step_limit
from pdejax.exact._stability import real_axis_limit as real_axis_limit
from pdejax.exact._stability import stability_polynomial as stability_polynomial
