"""The fixtures of the tests of model_store_file."""

from faults.model_store import dest, folder, hub, hub_dir, running_hub

__all__ = ["dest", "folder", "hub", "hub_dir", "running_hub"]
