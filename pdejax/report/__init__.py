"""The report: what `pdejax reproduce` and `pdejax claims` left in a folder, as one HTML page and as Markdown."""

from pdejax.report._build import BuiltReport as BuiltReport
from pdejax.report._build import build_report as build_report
from pdejax.report._html import html_page as html_page
from pdejax.report._markdown import markdown_page as markdown_page
from pdejax.report._read import ReportError as ReportError
from pdejax.report._read import Results as Results
from pdejax.report._read import read_results as read_results
