"""The fixtures of the tests of model_store_file."""

from faults.model_store import asked_here, dest, folder, hub, hub_dir, running_hub

__all__ = ["asked_here", "dest", "folder", "hub", "hub_dir", "running_hub"]
