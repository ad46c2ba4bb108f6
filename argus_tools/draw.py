"""What `--draw` writes: the pictures of processing_argus.drawing_argus, in formats that hold colours."""

from PIL import Image

from processing_argus.drawing_argus import caption_color, draw_regions

__all__ = ["SUFFIXES", "caption_color", "draw_regions", "drawable_suffix"]

# Formats that hold colours, one picture a file. Pillow knows names of many more, which it reads only or writes in grey.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def drawable_suffix(suffix: str) -> bool:
    """Whether a drawing can be saved under a name that ends so (".png") by this build of Pillow."""
    return suffix.lower() in SUFFIXES and Image.registered_extensions().get(suffix.lower()) in Image.SAVE
