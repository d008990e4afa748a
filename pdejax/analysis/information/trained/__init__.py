"""Trainable estimates of mutual information: bounds from below and above, and v1 (16), which is neither.

| estimate | kind | fails where |
|---|---|---|
| `InfoNCE` | lower bound | I > ln b: it saturates |
| `BarberAgakov` | lower bound with a known entropy | q is not the posterior: slack |
| `CLUB` | upper bound with a fitted q | sharp channels: the gap grows like ρ²/(1−ρ²) |
| `PaperEstimate` | neither | T is not Gaussian: too high |

All take pairs and answer in nats.
"""

from pdejax.analysis.information._samples import AbstractInformation as AbstractInformation
from pdejax.analysis.information.trained._estimates import CLUB as CLUB
from pdejax.analysis.information.trained._estimates import BarberAgakov as BarberAgakov
from pdejax.analysis.information.trained._estimates import InfoNCE as InfoNCE
from pdejax.analysis.information.trained._estimates import PaperEstimate as PaperEstimate
from pdejax.analysis.information.trained._fit import fit as fit
from pdejax.analysis.information.trained._networks import ConditionalGaussian as ConditionalGaussian
