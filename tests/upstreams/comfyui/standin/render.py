"""The node classes: real files in and out, seeded colour fields in place of diffusion."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import string
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from .folders import Folders, is_within

Json = dict[str, Any]
Picture = Image.Image

HEADER_LIMIT_B = 100_000_000
LATENT_PX = 8  # pixels of an image to one of its latent
CELL_PX = 8  # latent pixels to one colour cell: coarse enough that a PNG of 1024x1024 is written in a moment
# A pause lets the server's thread answer, and gives an interrupt something to stop.
STEP_PAUSE_S = 0.002

RESAMPLING = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "bislerp": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class SafetensorError(Exception):
    """A file that the safetensors library would refuse."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Error while deserializing header: {reason}")


# Clients see the type by its full name, so it carries the library's.
SafetensorError.__module__ = "safetensors._safetensors_rust"


@dataclass(frozen=True)
class Weights:
    """Stands for a model, its text encoder or its VAE: only its identity matters."""

    identity: str


@dataclass(frozen=True)
class Latent:
    """One small picture per image of the batch; None where nothing has been painted yet."""

    width: int
    height: int
    pictures: tuple[Picture | None, ...]


@dataclass
class Context:
    """What a node may use besides its inputs."""

    folders: Folders
    metadata_enabled: bool
    prompt: Json
    extra_pnginfo: Json | None
    progress: Callable[[int, int], None]


Result = tuple[tuple[Any, ...], Json | None]


def read_header(path: str) -> str:
    """Digest of a safetensors header, after checking it against the file's size."""
    if os.path.splitext(path)[1].lower() not in (".safetensors", ".sft"):
        raise ValueError(f"The stand-in reads safetensors only, not {path}")
    size_b = os.path.getsize(path)
    with open(path, "rb") as handle:
        start = handle.read(8)
        header_b = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if header_b == 0:
            raise SafetensorError("header too small")
        if header_b > min(HEADER_LIMIT_B, size_b - 8):
            raise SafetensorError("header too large")
        raw = handle.read(header_b)
    try:
        header = json.loads(raw)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SafetensorError(f"invalid header: {error}") from error
    expected_b = 8 + header_b + max(ends, default=0)
    if expected_b != size_b:
        raise SafetensorError(f"incomplete metadata, {size_b} bytes found, {expected_b} expected")
    return hashlib.sha256(raw).hexdigest()


def paint(material: str, width: int, height: int) -> Picture:
    """Return a colour field that depends on nothing but its arguments."""
    columns, rows = max(2, width // CELL_PX), max(2, height // CELL_PX)
    noise = random.Random(material).randbytes(columns * rows * 3)  # noqa: S311 - repeatable on purpose
    return Image.frombytes("RGB", (columns, rows), noise).resize((width, height), Image.Resampling.BICUBIC)


def scaled_size(old: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """Size asked for, a zero meaning in proportion."""
    if width == 0 and height == 0:
        return old
    return width or max(1, round(old[0] * height / old[1])), height or max(1, round(old[1] * width / old[0]))


def scale(picture: Picture, size: tuple[int, int], method: str, crop: str) -> Picture:
    """Scale, after cutting to the new proportions where asked."""
    how = RESAMPLING[method]
    return ImageOps.fit(picture, size, how) if crop == "center" else picture.resize(size, how)


def next_number(directory: str, name: str) -> int:
    """Number after the highest `name_NNNNN_` in a directory, which is made where it is missing."""
    try:
        found = os.listdir(directory)
    except FileNotFoundError:
        os.makedirs(directory)
        found = []
    pattern = re.compile(re.escape(name) + r"_(\d*)")
    return 1 + max((int(match[1] or 0) for entry in found if (match := pattern.match(entry))), default=0)


def expand(prefix: str, size: tuple[int, int]) -> str:
    """Replace the `%width%`-like words of a file name prefix."""
    now = time.localtime()
    words = {
        "width": str(size[0]),
        "height": str(size[1]),
        "year": str(now.tm_year),
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }
    return re.sub(r"%(\w+)%", lambda match: words.get(match[1], match[0]), prefix)


def save(context: Context, pictures: tuple[Picture, ...], prefix: str, kind: str, compress_level: int) -> Json:
    """Write PNGs and return what the history says of them."""
    root = context.folders.output if kind == "output" else context.folders.temp
    prefix = os.path.normpath(expand(prefix, pictures[0].size))
    subfolder, name = os.path.split(prefix)
    directory = os.path.join(root, subfolder)
    if not is_within(root, directory):
        raise ValueError(f"Saving image outside the output folder is not allowed: {os.path.abspath(directory)}")
    number = next_number(directory, name)
    info = None
    if context.metadata_enabled:
        info = PngInfo()
        for key, value in {"prompt": context.prompt, **(context.extra_pnginfo or {})}.items():
            info.add_text(key, json.dumps(value))
    saved = []
    for position, picture in enumerate(pictures):
        file_name = f"{name.replace('%batch_num%', str(position))}_{number + position:05}_.png"
        picture.save(os.path.join(directory, file_name), pnginfo=info, compress_level=compress_level)
        saved.append({"filename": file_name, "subfolder": subfolder, "type": kind})
    return {"images": saved}


def empty_image(_: Context, inputs: Json) -> Result:
    """Plain colour."""
    color = inputs["color"]
    rgb = (color >> 16 & 0xFF, color >> 8 & 0xFF, color & 0xFF)
    picture = Image.new("RGB", (inputs["width"], inputs["height"]), rgb)
    return ((picture,) * inputs["batch_size"],), None


def save_image(context: Context, inputs: Json) -> Result:
    """Write into the output folder."""
    return (inputs["images"],), save(context, inputs["images"], inputs["filename_prefix"], "output", 4)


def preview_image(context: Context, inputs: Json) -> Result:
    """Write into the temporary folder, under a name that no other preview has."""
    suffix = "".join(random.choices(string.ascii_lowercase, k=5))  # noqa: S311 - a file name, not a secret
    return (inputs["images"],), save(context, inputs["images"], f"ComfyUI_temp_{suffix}", "temp", 1)


def load_image(context: Context, inputs: Json) -> Result:
    """Read from the input folder."""
    with Image.open(context.folders.image_path(inputs["image"])) as handle:
        picture = ImageOps.exif_transpose(handle)
        mask = ImageOps.invert(picture.getchannel("A")) if "A" in picture.getbands() else Image.new("L", (64, 64))
        return ((picture.convert("RGB"),), (mask,)), None


def load_checkpoint(context: Context, inputs: Json) -> Result:
    """Read the header of a checkpoint."""
    weights = Weights(read_header(context.folders.model("checkpoints", inputs["ckpt_name"])))
    return (weights, weights, weights), None


def load_lora(context: Context, inputs: Json) -> Result:
    """Mix a LoRA's header into model and text encoder, each by its strength."""
    identity = read_header(context.folders.model("loras", inputs["lora_name"]))
    changed = []
    for part in ("model", "clip"):
        strength, weights = inputs[f"strength_{part}"], inputs[part]
        changed.append(replace(weights, identity=f"{weights.identity}+{identity}*{strength}") if strength else weights)
    return tuple(changed), None


def encode_text(_: Context, inputs: Json) -> Result:
    """Join the encoder's identity and the text."""
    return (f"{inputs['clip'].identity}:{inputs['text']}",), None


def empty_latent(_: Context, inputs: Json) -> Result:
    """Nothing painted, of the right size and number."""
    size = inputs["width"] // LATENT_PX, inputs["height"] // LATENT_PX
    return (Latent(*size, (None,) * inputs["batch_size"]),), None


def sample(context: Context, inputs: Json) -> Result:
    """Move each picture towards one that depends on every setting, as far as `denoise` says, in `steps` steps."""
    latent: Latent = inputs["latent_image"]
    keys = ("seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "denoise")
    settings = json.dumps([inputs["model"].identity, *(inputs[key] for key in keys)])
    size = latent.width, latent.height
    starts = [picture or Image.new("RGB", size) for picture in latent.pictures]
    goals = [paint(f"{settings}#{position}", *size) for position in range(len(starts))]
    pictures = starts
    steps: int = inputs["steps"] if inputs["denoise"] > 0 else 0
    for step in range(1, steps + 1):
        share = inputs["denoise"] * step / steps
        pictures = [Image.blend(start, goal, share) for start, goal in zip(starts, goals, strict=True)]
        time.sleep(STEP_PAUSE_S)
        context.progress(step, steps)
    return (replace(latent, pictures=tuple(pictures)),), None


def decode(_: Context, inputs: Json) -> Result:
    """Enlarge a latent to its image."""
    latent: Latent = inputs["samples"]
    size = latent.width * LATENT_PX, latent.height * LATENT_PX
    gray = Image.new("RGB", (1, 1), (128, 128, 128))
    return (tuple((picture or gray).resize(size, Image.Resampling.BICUBIC) for picture in latent.pictures),), None


def encode(_: Context, inputs: Json) -> Result:
    """Shrink images to a latent."""
    pictures: tuple[Picture, ...] = inputs["pixels"]
    size = max(1, pictures[0].width // LATENT_PX), max(1, pictures[0].height // LATENT_PX)
    return (Latent(*size, tuple(picture.resize(size, Image.Resampling.BOX) for picture in pictures)),), None


def scale_image(_: Context, inputs: Json) -> Result:
    """Scale pictures."""
    size = scaled_size(inputs["image"][0].size, inputs["width"], inputs["height"])
    pictures = (scale(picture, size, inputs["upscale_method"], inputs["crop"]) for picture in inputs["image"])
    return (tuple(pictures),), None


def scale_latent(_: Context, inputs: Json) -> Result:
    """Scale a latent; sizes are given in pixels of the image."""
    latent: Latent = inputs["samples"]
    old = latent.width * LATENT_PX, latent.height * LATENT_PX
    pixels = scaled_size(old, inputs["width"], inputs["height"])
    size = max(1, pixels[0] // LATENT_PX), max(1, pixels[1] // LATENT_PX)
    pictures = (
        picture and scale(picture, size, inputs["upscale_method"], inputs["crop"]) for picture in latent.pictures
    )
    return (Latent(*size, tuple(pictures)),), None


def repeat_latent(_: Context, inputs: Json) -> Result:
    """Repeat a batch."""
    latent: Latent = inputs["samples"]
    return (replace(latent, pictures=latent.pictures * inputs["amount"]),), None


CLASSES: dict[str, Callable[[Context, Json], Result]] = {
    "CLIPTextEncode": encode_text,
    "CheckpointLoaderSimple": load_checkpoint,
    "EmptyImage": empty_image,
    "EmptyLatentImage": empty_latent,
    "ImageScale": scale_image,
    "KSampler": sample,
    "LatentUpscale": scale_latent,
    "LoadImage": load_image,
    "LoraLoader": load_lora,
    "PreviewImage": preview_image,
    "RepeatLatentBatch": repeat_latent,
    "SaveImage": save_image,
    "VAEDecode": decode,
    "VAEEncode": encode,
}
