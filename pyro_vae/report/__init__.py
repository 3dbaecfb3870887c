"""Runs in, one self-contained page out."""

__all__ = ["write_report", "report_html"]

from pyro_vae.report.page import report_html, write_report
