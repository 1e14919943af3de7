"""ComfyUI stand-in: same command line, same HTTP and websocket answers, no diffusion. Not ComfyUI."""

import runpy

# `standin` resolves beside this file whatever the working directory is.
runpy.run_module("standin", run_name="__main__")
