"""What a benchmark found, for people: tables in Markdown, a plot as SVG, and the winner as variables."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

GB = 1e9
STEPS = {
    "txt2img": "txt2img, 1 image",
    "img2img": "img2img, 1 image",
    "batch": "batch of 4",
}
LIMITS = {
    "start_s": ("start-up, the slower of cold and warm", "s"),
    "model_load_s": ("model load, cold", "s"),
    "latency_s": ("txt2img, warm median", "s"),
    "utilisation": ("GPU utilisation during txt2img", "%"),
    "memory_gb": ("peak GPU memory", "GB"),
    "container_cost_ratio": ("container against plain `python main.py`", ""),
}
NOT_REPORTED = "not reported"


def figure(value: float | None, unit: str, digits: int = 2) -> str:
    """A number with its unit, or that the driver gave none."""
    return NOT_REPORTED if value is None else f"{value:.{digits}f} {unit}".rstrip()


def rows(table: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([head, "|" + "---|" * len(table[0]), *body])


def spread(latency: Mapping[str, Any]) -> str:
    """Median with its extremes."""
    return f"{latency['median']:.2f} s ({latency['min']:.2f} to {latency['max']:.2f}, {latency['count']} runs)"


def measured_table(result: Mapping[str, Any]) -> str:
    """Everything that was measured with the settings of the service."""
    measured = result["measured"]
    table = [["what", "start-up", "first image", "of it model load", "warm image"]]
    names = {"cold": "container, cold caches", "warm": "container, again", "plain": "plain `python main.py`"}
    for step, name in names.items():
        found = measured[step]
        seconds = [figure(found[key], "s") for key in ("start_s", "first_image_s", "model_load_s")]
        table.append([name, *seconds, spread(found["latency_s"])])
    starts = rows(table)
    table = [["what", "median (range)", "GPU utilisation", "peak memory", "energy an image"]]
    images = {"txt2img": 1, "img2img": 1, "batch": 4}
    for step, name in STEPS.items():
        found = measured[step]
        count = found["latency_s"]["count"] * images[step]
        table.append([name, spread(found["latency_s"]), *load_columns(found, count)])
    queue = measured["queue"]
    rate = f"{queue['images_per_minute']:.1f} images a minute"
    table.append([f"{queue['length']} prompts at once", rate, *load_columns(queue, queue["length"])])
    return f"{starts}\n\n{rows(table)}"


def load_columns(found: Mapping[str, Any], images: int) -> list[str]:
    """Utilisation, memory and energy as table cells."""
    memory_gb = None if found["memory_b"] is None else found["memory_b"] / GB
    energy_j = None if found["energy_j"] is None else found["energy_j"] / images
    return [figure(found["utilisation"], "%", 0), figure(memory_gb, "GB", 1), figure(energy_j, "J", 0)]


def limits_table(result: Mapping[str, Any]) -> str:
    """The limits, and whether they hold."""
    table = [["figure", "limit", "measured", "holds"]]
    for row in result["limits"]:
        name, unit = LIMITS[row["name"]]
        limit = f"at most {row['most']:g} {unit}" if "most" in row else f"at least {row['least']:g} {unit}"
        digits = 3 if row["name"] == "container_cost_ratio" else 2
        table.append([name, limit.rstrip(), figure(row["found"], unit, digits), "yes" if row["holds"] else "**no**"])
    return rows(table)


def setting(candidate: Mapping[str, Any]) -> str:
    """A candidate's settings in words."""
    words = [f"`{' '.join(candidate['flags'])}`"] if candidate["flags"] else []
    words += [f"`{name}={value}`" for name, value in candidate.get("environment", {}).items()]
    if candidate["compile"]:
        words.append(f"TorchCompileModel ({candidate['compile']})")
    return " and ".join(words) or "none"


def tuning_table(result: Mapping[str, Any]) -> str:
    """The ranking: the fastest first, the rejected ones last with the reason."""
    tuning = result["tuning"]
    by_name = {candidate["name"]: candidate for candidate in tuning["candidates"]}
    table = [
        ["candidate", "settings", "median (range)", "of the defaults", "images differ by", "peak memory", "verdict"]
    ]
    for row in tuning["ranking"]["rows"]:
        cells = [row["name"], setting(by_name[row["name"]])]
        if "latency_s" in row:
            memory_gb = None if row["memory_b"] is None else row["memory_b"] / GB
            gap = f"{row['images']['mean']:.2f} levels, {row['images']['share']:.1%} of pixels"
            cells += [spread(row["latency_s"]), f"{row['ratio']:.2f}", gap, figure(memory_gb, "GB", 1)]
        else:
            cells += ["", "", "", ""]
        won = "**winner**" if row["name"] == tuning["ranking"]["winner"] else "kept"
        reason = row["rejected"].strip().partition("\n")[0]  # ComfyUI's error; torch's go on for paragraphs
        table.append([*cells, f"rejected: {reason}" if reason else won])
    return rows([[cell.replace("|", "\\|") for cell in row] for row in table])


def report(result: Mapping[str, Any]) -> str:
    """The whole report of one host as Markdown."""
    machine, comfyui = result["machine"], result["comfyui"]
    memory = f"{machine['gpu_memory_mib']} MiB" if machine["gpu_memory_mib"] else "memory shared with the host"
    synthetic = " (synthetic)" if result["checkpoint"]["synthetic"] else ""
    parts = [
        f"{machine['gpu'] or 'no GPU'} ({memory}), driver {machine['driver'] or 'none'}, {machine['architecture']}, "
        f"{machine['cores']} cores, kernel {machine['kernel']}, Docker {machine['engine']}; "
        f"ComfyUI {comfyui['version']}, torch {comfyui['torch']}, Python {comfyui['python']}; "
        f"checkpoint `{result['checkpoint']['name']}`{synthetic}; {result['date']}.",
        measured_table(result),
        limits_table(result),
    ]
    if "tuning" in result:
        parts.append(tuning_table(result))
    return "\n\n".join(parts) + "\n"


def plot(result: Mapping[str, Any]) -> str:
    """Warm latencies as bars with their range, one a line, as an SVG image without anything from elsewhere."""
    measured = result["measured"]
    bars: list[tuple[str, Mapping[str, Any]]] = [
        *((name, measured[step]["latency_s"]) for step, name in STEPS.items()),
        ("txt2img, plain python main.py", measured["plain"]["latency_s"]),
    ]
    ranked = result.get("tuning", {}).get("ranking", {"rows": []})["rows"]
    bars += [(f"tuning: {row['name']}", row["latency_s"]) for row in ranked if "latency_s" in row]
    longest_s = max(latency["max"] for _, latency in bars)
    scale = 480 / longest_s
    machine = html.escape(result["machine"]["gpu"] or "no GPU")
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="840" height="{40 + 26 * len(bars)}"',
        '  font-family="sans-serif" font-size="13">',
        f"<title>Seconds until the images are written, {machine}</title>",
    ]
    for number, (name, latency) in enumerate(bars):
        y = 20 + 26 * number
        left, right = 250 + latency["min"] * scale, 250 + latency["max"] * scale
        lines += [
            f'<text x="242" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>',
            f'<rect x="250" y="{y}" width="{latency["median"] * scale:.1f}" height="18" fill="#76b900"/>',
            f'<path d="M{left:.1f} {y + 9}H{right:.1f}M{left:.1f} {y + 5}v8M{right:.1f} {y + 5}v8"',
            '  stroke="#333" fill="none"/>',
            f'<text x="{right + 8:.1f}" y="{y + 14}">{latency["median"]:.2f} s</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def winner_variables(
    result: Mapping[str, Any], flags: Sequence[str], environment: Mapping[str, str], graphs_dir: str
) -> dict[str, Any]:
    """The variables that make the winner this host's setting; empty where the defaults won.

    `flags` and `environment` are what the host has already, `graphs_dir` is the folder with the graphs that compile
    their model.
    """
    ranking = result["tuning"]["ranking"]
    (candidate,) = [one for one in result["tuning"]["candidates"] if one["name"] == ranking["winner"]]
    variables: dict[str, Any] = {}
    if candidate["flags"]:
        variables["comfyui_extra_flags"] = [*flags, *candidate["flags"]]
    if candidate.get("environment"):
        variables["comfyui_environment"] = {**environment, **candidate["environment"]}
    if candidate["compile"]:
        variables["comfyui_workflows_source_dir"] = graphs_dir
    return variables


def winner_backend(result: Mapping[str, Any]) -> str:
    """The backend with which the winner compiles its model; empty where it does not."""
    ranking = result.get("tuning", {}).get("ranking", {})
    found = [
        one["compile"] for one in result.get("tuning", {}).get("candidates", []) if one["name"] == ranking["winner"]
    ]
    return str(found[0]) if found else ""
