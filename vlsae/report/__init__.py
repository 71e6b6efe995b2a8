"""The static report: one offline HTML file a run."""

from vlsae.report.run import write_report

__all__ = ["write_report"]
