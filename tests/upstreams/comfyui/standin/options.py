"""Command line of ComfyUI 0.28.1. Flags without effect here are still known, and unknown ones refused."""

from __future__ import annotations

import argparse
import os

SOURCE_DIR = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

SWITCHES = """
auto-launch cpu-vae debug-hang deterministic disable-all-custom-nodes disable-api-nodes disable-async-offload
disable-auto-launch disable-dynamic-vram disable-metadata disable-mmap disable-pinned-memory disable-smart-memory
disable-triton-backend disable-xformers dont-print-server enable-asset-hashing enable-assets
enable-compress-response-body enable-dynamic-vram enable-manager enable-triton-backend fast-disk force-channels-last
force-non-blocking fp16-intermediates list-feature-flags log-stdout mmap-torch-files multi-user quick-test-for-ci
supports-fp8-compute windows-standalone-build
"""

# Switches of one line exclude each other.
EXCLUSIVE = """
cuda-malloc disable-cuda-malloc
force-fp32 force-fp16
fp32-unet fp64-unet bf16-unet fp16-unet fp8_e4m3fn-unet fp8_e5m2-unet fp8_e8m0fnu-unet
fp16-vae fp32-vae bf16-vae
fp8_e4m3fn-text-enc fp8_e5m2-text-enc fp16-text-enc fp32-text-enc bf16-text-enc
use-split-cross-attention use-quad-cross-attention use-pytorch-cross-attention use-sage-attention use-flash-attention
force-upcast-attention dont-upcast-attention
disable-manager-ui enable-manager-legacy-ui
gpu-only highvram lowvram novram cpu
""".strip().splitlines()


class Options(argparse.Namespace):
    """What the stand-in acts on."""

    listen: str
    port: int
    base_directory: str | None
    output_directory: str | None
    input_directory: str | None
    temp_directory: str | None
    user_directory: str | None
    models_directory: str | None
    extra_model_paths_config: list[list[str]] | None
    database_url: str
    max_upload_size: float
    tls_keyfile: str | None
    tls_certfile: str | None
    enable_cors_header: str | None
    verbose: str
    log_stdout: bool
    whitelist_custom_nodes: list[str]
    disable_all_custom_nodes: bool
    disable_api_nodes: bool
    disable_metadata: bool
    dont_print_server: bool
    quick_test_for_ci: bool
    cache_none: bool


def existing_directory(path: str) -> str:
    """Type of the flags that demand a readable directory."""
    if not os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"'{path}' is not a directory that exists")
    if not os.access(path, os.R_OK):
        raise argparse.ArgumentTypeError(f"'{path}' cannot be read")
    return path


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag that a provisioner may pass."""
    parser = argparse.ArgumentParser(description="ComfyUI stand-in for tests")
    add = parser.add_argument
    add("--listen", default="127.0.0.1", nargs="?", const="0.0.0.0,::", metavar="IP")
    add("--port", type=int, default=8188)
    add("--tls-keyfile")
    add("--tls-certfile")
    add("--enable-cors-header", nargs="?", const="*", metavar="ORIGIN")
    add("--max-upload-size", type=float, default=100, metavar="MB")
    for name in ("base", "output", "input", "temp"):
        add(f"--{name}-directory")
    for name in ("user-directory", "models-directory", "front-end-root"):
        add(f"--{name}", type=existing_directory)
    add("--extra-model-paths-config", nargs="+", action="append", metavar="PATH")
    add("--database-url", default=f"sqlite:///{os.path.join(SOURCE_DIR, 'user', 'comfyui.db')}")
    add("--front-end-version", default="comfyanonymous/ComfyUI@latest")
    add("--comfy-api-base", default="https://api.comfy.org")
    add("--whitelist-custom-nodes", nargs="+", default=[])
    add("--feature-flag", action="append", default=[])
    add("--cuda-device")
    add("--default-device", type=int)
    add("--directml", type=int, nargs="?", const=-1)
    add("--oneapi-device-selector")
    add("--preview-method", choices=["none", "auto", "latent2rgb", "taesd"], default="none")
    add("--preview-size", type=int, default=512)
    add("--reserve-vram", type=float, metavar="GB")
    add("--vram-headroom", type=float, default=0, metavar="GB")
    add("--async-offload", type=int, nargs="?", const=2)
    add("--default-hashing-function", choices=["md5", "sha1", "sha256", "sha512"], default="sha256")
    add("--fast", nargs="*", choices=["fp16_accumulation", "fp8_matrix_mult", "cublas_ops", "autotune"])
    levels = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    add("--verbose", default="INFO", const="DEBUG", nargs="?", choices=levels)
    for name in SWITCHES.split():
        add(f"--{name}", action="store_true")
    for line in EXCLUSIVE:
        group = parser.add_mutually_exclusive_group()
        for name in line.split():
            group.add_argument(f"--{name}", action="store_true")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument("--cache-ram", nargs="*", type=float, default=[], metavar="GB")
    cache.add_argument("--cache-lru", type=int, default=0)
    for name in ("cache-classic", "cache-none", "high-ram"):
        cache.add_argument(f"--{name}", action="store_true")
    return parser


def parse(argv: list[str]) -> Options:
    """Options of a command line; ends the process with status 2 where it is wrong, as argparse does."""
    parser = build_parser()
    found = parser.parse_args(argv, namespace=Options())
    if len(found.cache_ram) > 2:
        parser.error("--cache-ram takes at most two values")
    return found
