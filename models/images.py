"""From an image file to 8-bit RGB pixels, upright, whatever the file holds."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcompile.core.errors import MissingExtraError, UsageError
from tcompile.core.files import regular_file

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image


class ImageError(UsageError):
    """A file that is not an image, or one of which it is not known what its pixels mean."""


#: Files of a folder that are read as images, by suffix.
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
#: What lies behind transparent pixels: white, as in the processors of Qwen-VL and Idefics.
BACKGROUND = (255, 255, 255)
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
#: TIFF tags: bits of a sample, and whether 0 is white.
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_ELSE = "save it with 8 or 16 bits a channel, or give the input as .npy or .npz"


def read_rgb(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Decode an image: mode RGB, 8 bits a channel, turned as its EXIF orientation says.

    16-bit pixels are scaled to 8 bits (65535 is 255), float pixels lie within 0 (black) and 1
    (white). Transparent pixels are laid on `BACKGROUND`. Grey becomes three equal channels;
    palettes, CMYK and other colour spaces are converted as pillow does, without colour profiles.
    Of an animation or a file of several pages, this is the first.

    Args:
        source: a file, its bytes, or an image that pillow has opened or made.

    Raises:
        ImageError: no such file, not an image, or pixels whose range is not known.
        MissingExtraError: pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise MissingExtraError("pillow", "cpu", "reading images") from error
    path = str(source) if isinstance(source, (str, Path)) else "the image given"
    try:
        if isinstance(source, Image.Image):
            return _on_background(_eight_bits(_upright(source), source, path))
        # By its stream: given a name, pillow maps TIFF files, and mistakes rows for columns in
        # those that are to be turned.
        data = BytesIO(source) if isinstance(source, bytes) else regular_file(source).open("rb")
        with data as stream, Image.open(stream) as opened:
            opened.load()
            return _on_background(_eight_bits(_upright(opened), opened, path))
    except ImageError:
        raise
    except UsageError as error:
        raise ImageError(error.what, where=error.where) from error
    except MemoryError:
        raise
    except Exception as error:  # Of a damaged file a decoder may raise anything.
        known = isinstance(error, UnidentifiedImageError) or not str(error)
        said = "" if known else f": {' '.join(str(error).split())[:120]}"
        raise ImageError(f"is not an image that pillow can read{said}", where=path) from error


def decode_plain(path: str | Path) -> Image.Image:
    """Decode an image as it is: no rotation, its own mode.

    Raises:
        ImageError, MissingExtraError: as `read_rgb`.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("pillow", "cpu", "reading images") from error
    try:
        with regular_file(path).open("rb") as stream, Image.open(stream) as opened:
            opened.load()
            found: Image.Image = opened.copy()
            return found
    except UsageError as error:
        raise ImageError(error.what, where=error.where) from error
    except MemoryError:
        raise
    except Exception as error:  # Of a damaged file a decoder may raise anything.
        raise ImageError("is not an image that pillow can read", where=str(path)) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as the EXIF orientation says; as it is where there is none."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # A damaged EXIF block holds no orientation; viewers ignore it too.
        return image


def _eight_bits(image: Image.Image, opened: Image.Image, path: str | Path) -> Image.Image:
    """The image in a mode of 8 bits a channel. `opened` knows the file's format and tags."""
    if image.mode == "F":
        return _grey(_unit(np.asarray(image, np.float64), path), opened)
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    # PNG and PPM have at most 16 bits; in TIFF mode I is for signed and for 32-bit numbers.
    wide = image.mode == "I" and opened.format not in ("PNG", "PPM")
    if wide or values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError(
            "has pixels of signed or 32-bit integers: which value is white is not known",
            where=str(path),
            hint=_ELSE,
        )
    return _grey(values / ((1 << _bits(opened)) - 1), opened)


def _unit(values: NDArray[np.float64], path: str | Path) -> NDArray[np.float64]:
    """Float pixels, if they lie within 0 and 1."""
    bad = np.argwhere(~((values >= 0) & (values <= 1)))  # NaN too
    if len(bad):
        row, column = (int(i) for i in bad[0])
        raise ImageError(
            f"has float pixels, which must lie within 0 (black) and 1 (white): "
            f"{values[row, column]:g} in row {row}, column {column}",
            where=str(path),
            hint=_ELSE,
        )
    return values


def _grey(shares: NDArray[np.float64], opened: Image.Image) -> Image.Image:
    """Shares of white [H, W] as an 8-bit grey image, with the alpha that the file declares."""
    from PIL import Image

    clear = opened.info.get("transparency")
    if _tag(opened, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        shares = 1 - shares
    grey = Image.fromarray(np.rint(shares * 255).astype(np.uint8))
    if isinstance(clear, int):  # PNG: the one grey value that is transparent
        alpha = np.where(shares == clear / ((1 << _bits(opened)) - 1), 0, 255)
        grey.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return grey


def _bits(opened: Image.Image) -> int:
    """Bits that a grey pixel of more than 8 has: 16, or fewer in some TIFF files (12)."""
    found = _tag(opened, _BITS)
    return int(found[0] if isinstance(found, tuple) else found) if found else 16


def _tag(opened: Image.Image, number: int) -> Any:
    """A TIFF tag, or None."""
    return getattr(opened, "tag_v2", {}).get(number)


def _on_background(image: Image.Image) -> Image.Image:
    """RGB, with what is transparent laid on `BACKGROUND`."""
    from PIL import Image

    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    clear = image.mode in _ALPHA or palette == "RGBA" or "transparency" in image.info
    if not clear:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    behind = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(behind, image).convert("RGB")
