"""The tables of docs/benchmarks.md, rendered from what the benchmarks measured."""

import re
from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]

_MARKED = r"(<!-- bench: {name} -->\n).*?(<!-- end of {name} -->)"


def render(page: str, record: Mapping[str, Any]) -> str:
    """Puts the tables of a record between the marks of a page.

    Args:
        page: Markdown with ``<!-- bench: NAME -->`` and ``<!-- end of NAME -->`` around each table.
        record: What the suite wrote.

    Raises:
        ValueError: If a benchmark of the record has no marks in the page.
    """
    for name, run in record["benchmarks"].items():
        body = f"{table_of(name, run)}\n\n{_made_by(run, record)}\n"
        pattern = re.compile(_MARKED.format(name=name), re.DOTALL)
        page, count = pattern.subn(lambda marks, body=body: marks[1] + body + marks[2], page)
        if count != 1:
            msg = f"render: the page must have the marks of {name!r} once, got {count} of them."
            raise ValueError(msg)
    return page


def table_of(name: str, run: Mapping[str, Any]) -> str:
    """Returns the table of one benchmark in Markdown."""
    found = run["result"]
    return _OWN[name](found) if name in _OWN else _rows(ROWS[name], found)


def _made_by(run: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    threads = run["result"].get("threads", 1)
    place = f"{record['device']}, {threads} thread{'s' if threads > 1 else ''}"
    return f"`{run['command']}` at {run['commit']}, {place}, torch {record['torch']}."


ROWS: dict[str, dict[str, str]] = {
    "lite": {
        "lite_speedup": "a training step of f3rm-lite, torch alone / with numba",
        "render_speedup": "rendering rays with features, the same",
        "chunk_speedup": "rendering in chunks of 1,024 rays / of 4,096",
        "grid_speedup_forward": "Nerfstudio's hash encoding alone, forward",
        "grid_speedup_training": "the same with its backward pass",
    },
    "gather": {
        "speedup_warm": "row-by-row loop of the earlier system / ours, warm, NumPy",
        "speedup_warm_fast": "the same with numba (the extra `fast`)",
        "speedup_cold": "the same, cold (pages evicted), NumPy",
        "vs_resident": "ours / indexing one resident tensor",
        "growth_50_to_2000": "a batch from 2,000 images / from 50 images",
        "growth_numpy": "the same with NumPy alone",
        "growth_resident": "the same of the resident tensor's rows",
        "rss_anon_gb": "anonymous memory of the process in GB",
    },
    "extract": {
        "vs_bare_model": "images per second of the whole engine / of the bare model in memory",
        "engine_ratio_25": "the same / of a simulated device of 25 images per second",
        "engine_ratio_100": "the same / of one of 100 smaller images per second",
        "rss_growth": "peak memory with four times as many images / with as many",
    },
    "splats": {
        "lifting_65": "seconds of a core to lift 65 channels of a view",
        "score_image": "to draw one channel",
        "hidden_image": "to draw 65 channels",
        "features_768": "from a map of 768 channels to the 65 of its pixels",
        "features_5120": "the same of 5120",
        "width_ratio": "a view with a teacher of 5120 channels / of 768",
        "twin_ratio": "readable twin / machine code",
        "contributions": "Gaussians that contribute to a pixel, mean",
    },
    "render": {
        "similarity_vs_rgb_768": "similarity frame / RGB frame, 768 channels",
        "similarity_vs_rgb_5120": "the same, 5120 channels",
        "speedup_vs_channels_768": "frame by way of all channels / ours, 768 channels",
        "speedup_vs_channels_5120": "the same, 5120 channels",
        "requery_vs_rgb_768": "another query of the same view / RGB frame, 768 channels",
        "requery_vs_rgb_5120": "the same, 5120 channels",
    },
}
"""Which numbers a table shows, and what they are called."""


def _rows(labels: Mapping[str, str], found: Result) -> str:
    lines = ["| | |", "|---|---|"]
    shown = [(label, found[key]) for key, label in labels.items() if key in found]
    lines += [f"| {label} | {_shown(value)} |" for label, value in shown]
    for key, peaks in found.items():
        if key.startswith("peak_mib_") and peaks:
            each = ", ".join(f"{name} {_shown(value)}" for name, value in peaks.items())
            lines.append(f"| peak memory of a frame in MiB, {key[9:]} channels | {each} |")
    return "\n".join(lines)


def _step(found: Result) -> str:
    heads = [key.removeprefix("step_ratio_") for key in found if key.startswith("step_ratio_")]
    lines = [
        f"| | {' | '.join(f'{each} channels' for each in heads)} |",
        "|---|" + "---|" * len(heads),
    ]
    for key, label in (
        ("step_ratio", "f3rm step / Nerfacto step as Nerfstudio runs it"),
        ("features_ratio", "f3rm step / Nerfacto step with the same hash grids"),
        ("per_sample_ratio", "step that projects every sample / ours"),
    ):
        lines.append(
            f"| {label} | {' | '.join(_shown(found[f'{key}_{each}']) for each in heads)} |"
        )
    peaks = found["peak_mib"]
    if peaks:
        for kind, label in (("f3rm", "ours"), ("per_sample", "every sample projected")):
            shown = [_shown(peaks[f"{kind} {each}"]) for each in heads]
            lines.append(f"| memory of a step in MiB, {label} | {' | '.join(shown)} |")
    lines += ["", f"Head, compositing and loss alone, 768 channels: {found['head_speedup_768']} "]
    lines[-1] += "times as fast as projecting every sample."
    if peaks:
        lines[-1] += f" Nerfacto's step takes {_shown(peaks['nerfacto'])} MiB."
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in found["shares_768"].items())
    lines.append(f"Where a step of ours goes (768 channels): {shares}.")
    return "\n".join(lines)


def _scale(found: Result) -> str:
    labels = {
        "open": "opening a store, by images",
        "gather": "a batch of 4,096 rows, by images",
        "extract": "a photograph through TINYCLIP, by rows of pixels",
        "channels": "a step of f3rm-lite, by channels",
        "rays": "the same, by rays",
    }
    lines = ["| | milliseconds | when doubled |", "|---|---|---|"]
    for name, label in labels.items():
        times = found[f"{name}_ms"].items()
        shown = ", ".join(f"{int(size):,}: {_shown(value)}" for size, value in times)
        lines.append(f"| {label} | {shown} | x {_shown(found[f'{name}_per_doubling'])} |")
    return "\n".join(lines)


def _extract(found: Result) -> str:
    table = _rows(ROWS["extract"], found)
    if not found.get("is_gpu"):  # images per second of some CPU tell nobody anything
        return f"{table}\n\n{_engines(found)}" if "engines" in found else table
    rates = ", ".join(f"{way} {_shown(rate)}" for way, rate in found["images_per_second"].items())
    return f"{table}\n\nImages per second at a short side of {found['side']}: {rates}."


def _engines(found: Result) -> str:
    """Says what bounds the engine beside a simulated device: two cores, or the disk."""
    sentences = [
        f"At {name} images per second an image takes {_shown(engine['processor_ms_per_image'])} ms "
        f"of a core; {_shown(engine['wanted_mb_per_second'])} MB per second are written, "
        f"{_shown(engine['disk_mb_per_second'])} is the disk's rate for one synced file."
        for name, engine in found["engines"].items()
    ]
    return "\n".join(sentences)


_OWN = {"step": _step, "extract": _extract, "scale": _scale}


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
