"""Where models, inputs and outputs lie, and what is in them."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterable

from .options import SOURCE_DIR, Options

log = logging.getLogger(__name__)

WEIGHTS = frozenset({".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"})
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

# Kind of model, in the order in which /models lists them; folders other than the kind's own name; file name endings.
KINDS: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "checkpoints": ((), WEIGHTS),
    "configs": ((), frozenset({".yaml"})),
    "loras": ((), WEIGHTS),
    "vae": ((), WEIGHTS),
    "text_encoders": (("text_encoders", "clip"), WEIGHTS),
    "diffusion_models": (("unet", "diffusion_models"), WEIGHTS),
    "clip_vision": ((), WEIGHTS),
    "style_models": ((), WEIGHTS),
    "embeddings": ((), WEIGHTS),
    "diffusers": ((), frozenset({"folder"})),
    "vae_approx": ((), WEIGHTS),
    "controlnet": (("controlnet", "t2i_adapter"), WEIGHTS),
    "gligen": ((), WEIGHTS),
    "upscale_models": ((), WEIGHTS),
    "latent_upscale_models": ((), WEIGHTS),
    "custom_nodes": ((), frozenset()),
    "hypernetworks": ((), WEIGHTS),
    "photomaker": ((), WEIGHTS),
    "classifiers": ((), frozenset({""})),
    "model_patches": ((), WEIGHTS),
    "audio_encoders": ((), WEIGHTS),
    "background_removal": ((), WEIGHTS),
    "frame_interpolation": ((), WEIGHTS),
    "geometry_estimation": ((), WEIGHTS),
    "optical_flow": ((), WEIGHTS),
    "detection": ((), WEIGHTS),
}
SAVED_BY_NODES = {"checkpoints": "checkpoints", "clip": "text_encoders", "vae": "vae"} | {
    name: name for name in ("diffusion_models", "loras")
}
LEGACY = {"unet": "diffusion_models", "clip": "text_encoders"}


def is_within(directory: str, path: str) -> bool:
    """Whether `path`, links followed, lies in `directory`."""
    directory, path = os.path.realpath(directory), os.path.realpath(path)
    return os.path.commonpath((directory, path)) == directory


class Folders:
    """Directories of one server, from its options."""

    def __init__(self, args: Options) -> None:
        self.base = os.path.abspath(args.base_directory) if args.base_directory else SOURCE_DIR
        self.models = os.path.abspath(args.models_directory or os.path.join(self.base, "models"))
        self.output = os.path.abspath(args.output_directory or os.path.join(self.base, "output"))
        self.input = os.path.abspath(args.input_directory or os.path.join(self.base, "input"))
        self.user = os.path.abspath(args.user_directory or os.path.join(self.base, "user"))
        # The real server never uses --temp-directory itself but a folder in it, and deletes that one at start.
        self.temp = os.path.join(os.path.abspath(args.temp_directory or self.base), "temp")
        self.custom_nodes = os.path.join(self.base, "custom_nodes")
        self.paths: dict[str, list[str]] = {}
        for kind, (names, _) in KINDS.items():
            root = self.base if kind == "custom_nodes" else self.models
            self.paths[kind] = [os.path.join(root, name) for name in names or (kind,)]
        for config in (path for group in args.extra_model_paths_config or [] for path in group):
            self._add_configured(config)
        for name, kind in SAVED_BY_NODES.items():
            self.add(kind, os.path.join(self.output, name))

    def add(self, kind: str, path: str, *, first: bool = False) -> None:
        """Search `path` too; `first` moves it to the front."""
        found = self.paths.setdefault(LEGACY.get(kind, kind), [])
        if path in found and first:
            found.remove(path)
        if path not in found:
            found.insert(0 if first else len(found), path)

    def _add_configured(self, config: str) -> None:
        yaml = importlib.import_module("yaml")  # a requirement of the real server, not needed otherwise
        with open(config, encoding="utf-8") as handle:
            sections = yaml.safe_load(handle)
        here = os.path.dirname(os.path.abspath(config))
        for section in filter(None, sections.values()):
            root = os.path.join(here, os.path.expandvars(os.path.expanduser(section.pop("base_path", ""))))
            first = section.pop("is_default", False)
            for kind, lines in section.items():
                for line in filter(None, lines.split("\n")):
                    self.add(kind, os.path.normpath(os.path.join(root, line)), first=first)

    def create(self) -> None:
        """Make what the real server makes at start; the output folder comes with the first image."""
        try:
            os.makedirs(os.path.join(self.input, "3d"), exist_ok=True)
        except OSError as error:
            log.error("Failed to create input directory: %s", error)
        os.makedirs(self.user, exist_ok=True)

    def by_type(self, name: str) -> str | None:
        """Directory behind the `type` of a request."""
        return {"output": self.output, "input": self.input, "temp": self.temp}.get(name)

    def names(self, kind: str) -> list[str]:
        """File names of one kind of model, with their subfolders, sorted."""
        found: set[str] = set()
        _, endings = KINDS.get(kind, ((), frozenset()))
        for root in self.paths[kind]:
            for folder, subfolders, names in os.walk(root, followlinks=True):
                subfolders[:] = [name for name in subfolders if name != ".git"]
                found |= {os.path.relpath(os.path.join(folder, name), root) for name in names}
        return sorted(name for name in found if not endings or os.path.splitext(name)[1].lower() in endings)

    def model(self, kind: str, name: str) -> str:
        """Full path of a model file."""
        inside = os.path.relpath(os.path.join("/", name), "/")
        for root in self.paths[kind]:
            if os.path.isfile(os.path.join(root, inside)):
                return os.path.join(root, inside)
        raise FileNotFoundError(f"Model in folder '{kind}' with filename '{name}' not found.")

    def images(self) -> list[str]:
        """Choices of LoadImage; a missing input folder is an error, as in the real server."""
        names: Iterable[str] = os.listdir(self.input)
        return sorted(
            name
            for name in names
            if os.path.splitext(name)[1].lower() in IMAGES and os.path.isfile(os.path.join(self.input, name))
        )

    def annotated(self, name: str) -> tuple[str, str | None]:
        """Split `picture.png [output]` into the name and the directory meant; None where none is named."""
        for kind in ("output", "input", "temp"):
            if name.endswith(f"[{kind}]"):
                return name.removesuffix(f"[{kind}]").rstrip(), self.by_type(kind)
        return name, None

    def image_path(self, name: str) -> str:
        """Full path of an input image; ValueError where it would leave its folder."""
        plain, directory = self.annotated(name)
        directory = directory or self.input
        path = os.path.abspath(os.path.join(directory, plain))
        if not is_within(directory, path):
            raise ValueError(f"Invalid file path: {name!r}")
        return path
