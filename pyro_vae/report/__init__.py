"""Runs in, one self-contained page out."""

__all__ = ["write_report", "report_html", "check_place", "subjects_of"]

from pyro_vae.report.page import check_place, report_html, write_report
from pyro_vae.report.subject import subjects_of
