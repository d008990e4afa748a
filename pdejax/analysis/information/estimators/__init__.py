"""Estimates of information and entropy that count: bins, kernels, Gaussians, nearest neighbours."""

from pdejax.analysis.information.estimators._binned import binned_information as binned_information
from pdejax.analysis.information.estimators._exact_gaussian import gaussian_entropy as gaussian_entropy
from pdejax.analysis.information.estimators._exact_gaussian import gaussian_information as gaussian_information
from pdejax.analysis.information.estimators._kde import kde_information as kde_information
from pdejax.analysis.information.estimators._ksg import ksg_information as ksg_information
