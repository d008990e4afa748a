"""Likeness of hidden states: of two sets of samples, of layers, of whole trajectories, beside null models."""

from pdejax.analysis.similarity._measures import linear_cka as linear_cka
from pdejax.analysis.similarity._measures import mean_squared_error as mean_squared_error
from pdejax.analysis.similarity._measures import pearson as pearson
from pdejax.analysis.similarity._measures import procrustes_distance as procrustes_distance
from pdejax.analysis.similarity._measures import relative_error as relative_error
from pdejax.analysis.similarity._measures import sequence_cosine as sequence_cosine
from pdejax.analysis.similarity._measures import spearman as spearman
from pdejax.analysis.similarity._measures import token_cosine as token_cosine
from pdejax.analysis.similarity._trajectory import layer_correlation as layer_correlation
from pdejax.analysis.similarity._trajectory import trajectory_fidelity as trajectory_fidelity
