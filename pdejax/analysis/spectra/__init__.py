"""Spectra of hidden states along tokens and features, low-pass filtering, and spectra of attention's weights."""

from pdejax.analysis.spectra._amplitude import amplitude_spectrum as amplitude_spectrum
from pdejax.analysis.spectra._amplitude import low_pass_ratio as low_pass_ratio
from pdejax.analysis.spectra._amplitude import spectral_similarity as spectral_similarity
from pdejax.analysis.spectra._depth import weights_in_depth as weights_in_depth
from pdejax.analysis.spectra._weights import attention_spectra as attention_spectra
