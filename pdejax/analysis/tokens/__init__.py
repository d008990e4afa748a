"""Tokens as a population: clustering and collapse over depth, statistics of their representation."""

from pdejax.analysis.tokens._clustering import token_clustering as token_clustering
from pdejax.analysis.tokens._collapse import collapse_rate as collapse_rate
from pdejax.analysis.tokens._representation import representation as representation
