"""Trainable estimates of mutual information: bounds from below and above, and v1 (16), which is neither.

| estimate | kind | fails where |
|---|---|---|
| [`InfoNCE`][pdejax.analysis.information.InfoNCE] | lower bound | I > ln b: it saturates |
| [`BarberAgakov`][pdejax.analysis.information.BarberAgakov] | lower bound with a known entropy | q is not the posterior: slack |
| [`CLUB`][pdejax.analysis.information.CLUB] | upper bound with a fitted q | sharp channels: the gap grows like ρ²/(1−ρ²) |
| [`PaperEstimate`][pdejax.analysis.information.PaperEstimate] | neither | T is not Gaussian: too high |

All take pairs and answer in nats. A representation that is a smooth, noiseless function of the input has infinite or
constant information (claim C10): add noise, and say how much.
"""

from pdejax.analysis.information._barber_agakov import BarberAgakov as BarberAgakov
from pdejax.analysis.information._binned import binned_information as binned_information
from pdejax.analysis.information._calibration import Calibration as Calibration
from pdejax.analysis.information._calibration import calibration as calibration
from pdejax.analysis.information._calibration import standard_estimators as standard_estimators
from pdejax.analysis.information._channels import Channel as Channel
from pdejax.analysis.information._channels import Pairs as Pairs
from pdejax.analysis.information._channels import binary_symmetric_channel as binary_symmetric_channel
from pdejax.analysis.information._channels import class_channel as class_channel
from pdejax.analysis.information._channels import diffusion_channel as diffusion_channel
from pdejax.analysis.information._channels import discrete_channel as discrete_channel
from pdejax.analysis.information._channels import gaussian_channel as gaussian_channel
from pdejax.analysis.information._channels import standard_channels as standard_channels
from pdejax.analysis.information._channels import transformed as transformed
from pdejax.analysis.information._club import CLUB as CLUB
from pdejax.analysis.information._depth_entropy import LayerEntropy as LayerEntropy
from pdejax.analysis.information._depth_entropy import layer_entropy as layer_entropy
from pdejax.analysis.information._entropy import EntropyEstimate as EntropyEstimate
from pdejax.analysis.information._entropy import entropy as entropy
from pdejax.analysis.information._estimate import AbstractInformation as AbstractInformation
from pdejax.analysis.information._estimate import InformationEstimate as InformationEstimate
from pdejax.analysis.information._exact_gaussian import gaussian_information as gaussian_information
from pdejax.analysis.information._fit import fit as fit
from pdejax.analysis.information._gaussian import ConditionalGaussian as ConditionalGaussian
from pdejax.analysis.information._gaussian import gaussian_entropy as gaussian_entropy
from pdejax.analysis.information._infonce import InfoNCE as InfoNCE
from pdejax.analysis.information._kde import kde_information as kde_information
from pdejax.analysis.information._ksg import ksg_information as ksg_information
from pdejax.analysis.information._mutual import mutual_information as mutual_information
from pdejax.analysis.information._mutual import trained_information as trained_information
from pdejax.analysis.information._paper import PaperEstimate as PaperEstimate
from pdejax.analysis.information._phases import Phases as Phases
from pdejax.analysis.information._phases import information_phases as information_phases
from pdejax.analysis.information._plane import InformationPlane as InformationPlane
from pdejax.analysis.information._plane import information_plane as information_plane
from pdejax.analysis.information._processing import Processing as Processing
from pdejax.analysis.information._processing import data_processing as data_processing
from pdejax.analysis.information._spread import layer_spread as layer_spread
from pdejax.analysis.information._spread import unit_spread as unit_spread
