"""Information in representations: between two samples, by layer, over depth and over training, all in nats.

`trained`: estimates with parameters, which serve as losses too. `estimators`: what counts, by its own name. `channels`: where
the information is known, and how far estimators are off there. A representation that is a smooth, noiseless function of the
input has infinite or constant information (claim C10): add noise, and say how much.
"""

from pdejax.analysis.information import channels as channels
from pdejax.analysis.information import trained as trained
from pdejax.analysis.information._depth import data_processing as data_processing
from pdejax.analysis.information._depth import information_plane as information_plane
from pdejax.analysis.information._depth import layer_entropy as layer_entropy
from pdejax.analysis.information._layers import layer_spread as layer_spread
from pdejax.analysis.information._layers import unit_spread as unit_spread
from pdejax.analysis.information._measures import entropy as entropy
from pdejax.analysis.information._measures import mutual_information as mutual_information
from pdejax.analysis.information._phases import information_phases as information_phases
from pdejax.analysis.information._stages import curve_noise as curve_noise
from pdejax.analysis.information._stages import information_stages as information_stages
