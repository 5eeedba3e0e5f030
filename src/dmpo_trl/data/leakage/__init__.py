"""Leak reports: whether a data set gives its answers away."""

from .report import LeakReport, leak_report, leak_report_of_files

__all__ = ["LeakReport", "leak_report", "leak_report_of_files"]
