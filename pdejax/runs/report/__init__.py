"""The report: what `pdejax reproduce` and `pdejax claims` left in a folder, as one HTML page and as Markdown."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach

if TYPE_CHECKING:
    from pdejax.runs.report._build import build_report as build_report
    from pdejax.runs.report._read import ReportError as ReportError
else:  # help comes without what a report needs
    __getattr__, __dir__ = attach(__name__)
