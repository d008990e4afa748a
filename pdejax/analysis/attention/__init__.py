"""Likeness of attention maps, their entropy and rollout, beside uniform attention and shuffled rows."""

from pdejax.analysis.attention._fidelity import attention_cosine as attention_cosine
from pdejax.analysis.attention._fidelity import attention_divergence as attention_divergence
from pdejax.analysis.attention._fidelity import attention_entropy as attention_entropy
from pdejax.analysis.attention._fidelity import attention_fidelity as attention_fidelity
from pdejax.analysis.attention._fidelity import attention_rollout as attention_rollout
