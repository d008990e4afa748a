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
from pdejax.analysis.information._club import CLUB as CLUB
from pdejax.analysis.information._estimate import AbstractInformation as AbstractInformation
from pdejax.analysis.information._estimate import InformationEstimate as InformationEstimate
from pdejax.analysis.information._fit import fit as fit
from pdejax.analysis.information._gaussian import ConditionalGaussian as ConditionalGaussian
from pdejax.analysis.information._gaussian import gaussian_entropy as gaussian_entropy
from pdejax.analysis.information._infonce import InfoNCE as InfoNCE
from pdejax.analysis.information._paper import PaperEstimate as PaperEstimate
