"""Modules of the ComfyUI stand-in."""
