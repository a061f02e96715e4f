"""The report as one HTML page: everything inlined, everything escaped, no scripts."""

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

from . import words
from .report import BrokenSample, SliceFlips, UpdateReport

_IMAGES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif"}
_INLINE_BYTES = 64 * 1024  # a hundred pictures stay below what mail servers accept (9 MB with base64)
_THUMBNAIL = 240  # pixels: 96 on the page, and sharp on a phone
_BARS_SHOWN, _BARS = 15, 300  # classes outside and inside the fold


def render(report: UpdateReport, title: str) -> str:
    """The page; ImportError without jinja2."""
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ImportError("to_html: expected jinja2 to be installed: pip install 'graceful-fast[report]'") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=words.percent, whole=words.whole, number=words.number, p=words.probability)
    template = environment.from_string(files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"))
    flipped = [part for part in report.per_class if part.flips.negative or part.flips.positive]
    return template.render(
        title=title,
        report=report,
        flips=report.flips,
        headline=words.headline(report),
        explanation=words.explanation(report),
        strip=_strip(report),
        slices=[
            part
            for part in (
                _bars("By class", "class", "classes", flipped, len(report.per_class)),
                _bars("By group", "group", "groups", report.per_group, len(report.per_group)),
            )
            if part["rows"] or part["folded"]
        ],
        samples=[(sample, _picture(sample)) for sample in report.broken],
    )


def _strip(report: UpdateReport) -> list[tuple[str, float]]:
    """(kind, width in percent) of the four outcomes, in reading order."""
    flips = report.flips
    parts = {"right": flips.both_correct, "broken": flips.negative, "fixed": flips.positive, "wrong": flips.both_wrong}
    return [(kind, 100 * count / flips.total) for kind, count in parts.items() if count]


def _bars(title: str, one: str, many: str, slices: Any, known: int) -> dict[str, Any]:
    """Rows of two bars, broken to the left and fixed to the right, on one scale."""
    longest = max((max(part.flips.negative, part.flips.positive) for part in slices), default=0)

    def row(part: SliceFlips) -> dict[str, Any]:
        counts = part.flips
        scale = 100 / longest if longest else 0
        return {"name": part.name, "flips": counts, "left": counts.negative * scale, "right": counts.positive * scale}

    rows = [row(part) for part in slices[:_BARS]]
    return {
        "title": title,
        "one": one,
        "many": many,
        "rows": rows[:_BARS_SHOWN],
        "folded": rows[_BARS_SHOWN:],
        "unlisted": max(0, len(slices) - _BARS),
        "unmoved": known - len(slices),
    }


def _picture(sample: BrokenSample) -> str | None:
    """A data URI of the sample's image file, made small where it is not; None for anything else."""
    if sample.name is None or (kind := _IMAGES.get(Path(sample.name).suffix.lower())) is None:
        return None
    path = Path(sample.name)
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError:
        return None
    if len(content) > _INLINE_BYTES:
        content, kind = _thumbnail(content), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}" if content else None


def _thumbnail(content: bytes) -> bytes:
    """A small JPEG of an image file; empty where Pillow is missing or cannot read it."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return b""
    small = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            image.convert("RGB").save(small, "JPEG", quality=80)
    except (OSError, ValueError, Image.DecompressionBombError):
        return b""
    return small.getvalue()
