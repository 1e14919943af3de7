"""Mitogen's linear strategy without its pinning of processes to processors."""

from __future__ import annotations

from typing import Any

import ansible_mitogen.affinity  # type: ignore[import-untyped]
import ansible_mitogen.loaders  # type: ignore[import-untyped]
import ansible_mitogen.strategy  # type: ignore[import-untyped]

DOCUMENTATION = r"""
name: mitogen_unpinned
short_description: Mitogen's linear strategy, with every processor for every process
description:
  - The same as C(mitogen_linear), but for one thing. Mitogen keeps processors for itself and pins what it starts to the
    others, which children inherit. On a control node with two, every worker and every program that a task starts there
    share one of them; runs side by side, and an engine that a run starts, stay on it for as long as they live.
author:
  - dgx-comfyui (@dgx-comfyui)
"""

# Mitogen asks this object where a process may run; its own base class lets it run anywhere.
ansible_mitogen.affinity.policy = ansible_mitogen.affinity.Policy()

Linear: Any = ansible_mitogen.loaders.strategy_loader.get("linear", class_only=True)


class StrategyModule(ansible_mitogen.strategy.StrategyMixin, Linear):  # type: ignore[misc] # has no types
    """Runs each task on all hosts before the next."""
