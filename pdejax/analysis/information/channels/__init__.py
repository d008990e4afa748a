"""Channels whose information is known, and the errors of estimators on them."""

from pdejax.analysis.information.channels._channels import Channel as Channel
from pdejax.analysis.information.channels._channels import Pairs as Pairs
from pdejax.analysis.information.channels._channels import binary_symmetric_channel as binary_symmetric_channel
from pdejax.analysis.information.channels._channels import calibration as calibration
from pdejax.analysis.information.channels._channels import class_channel as class_channel
from pdejax.analysis.information.channels._channels import diffusion_channel as diffusion_channel
from pdejax.analysis.information.channels._channels import discrete_channel as discrete_channel
from pdejax.analysis.information.channels._channels import gaussian_channel as gaussian_channel
from pdejax.analysis.information.channels._channels import standard_channels as standard_channels
from pdejax.analysis.information.channels._channels import transformed as transformed
