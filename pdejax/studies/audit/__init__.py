"""The audit of a network: what its depth is, from its weights, its states and its derivatives, beside null models."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.studies.audit._audit import audit as audit
    from pdejax.studies.audit._config import AuditConfig as AuditConfig
else:
    __getattr__, __dir__ = _attach(__name__)
