"""The caption of one clip, as a list or the file beside its video gives it: its text, or why it cannot be read."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from worldtune.dataset.layout import given_path
from worldtune.dataset.source_clips import SourceClip

MAX_CAPTION_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CaptionText:
    """What was read as a caption."""

    text: str | None
    """The caption without the white space around it, its lines ended by \\n; None where it cannot be read."""
    problem: str = ""
    """Why it cannot be read."""
    content_sha256: str
    """SHA-256 of the text, or of the file's bytes where those are no text."""


def read_caption(source: Path, clip: SourceClip) -> CaptionText | None:
    """Return the caption of a clip, from the list or from the file beside its video; None where there is neither."""
    if clip.caption is not None:
        return _caption_text(clip.caption)
    if clip.caption_key is None:
        return None
    path = given_path(source, clip.caption_key)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        return CaptionText(text=None, problem=f"caption unreadable: {error.strerror}", content_sha256="unreadable")
    try:
        if len(data) > MAX_CAPTION_BYTES:
            raise ValueError(f"it is larger than {MAX_CAPTION_BYTES} bytes")
        text = data.decode("utf-8-sig")
        if clip.caption_key.endswith(".json"):
            record = json.loads(text)
            if not isinstance(record, dict) or not isinstance(record.get("caption"), str):
                raise ValueError('it has no text "caption"')
            text = record["caption"]
        return _caption_text(text)
    # RecursionError: JSON may be nested without end.
    except (ValueError, RecursionError) as error:
        problem = "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        return CaptionText(
            text=None, problem=f"caption unreadable: {problem}", content_sha256=hashlib.sha256(data).hexdigest()
        )


def _caption_text(text: str) -> CaptionText:
    # Files are read with their line ends as \n: the hash must be of what readers of the dataset's own file get.
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    try:
        return CaptionText(text=text, content_sha256=hashlib.sha256(text.encode()).hexdigest())
    except UnicodeEncodeError:
        # JSON can spell half a character.
        raw = text.encode("utf-8", errors="surrogatepass")
        return CaptionText(
            text=None, problem="caption unreadable: it is no Unicode", content_sha256=hashlib.sha256(raw).hexdigest()
        )
