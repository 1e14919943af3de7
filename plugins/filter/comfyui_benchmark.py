"""Filters of the role comfyui_benchmark: its results as a report, a plot and variables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The control node loads filters by file, so the modules' own code is not on its path.
sys.path.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

import benchmark_measures
import benchmark_report


class FilterModule:
    """The filters, by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "comfyui_benchmark_backend": benchmark_report.winner_backend,
            "comfyui_benchmark_compiled": benchmark_measures.compiled,
            "comfyui_benchmark_plot": benchmark_report.plot,
            "comfyui_benchmark_report": benchmark_report.report,
            "comfyui_benchmark_variables": benchmark_report.winner_variables,
        }
