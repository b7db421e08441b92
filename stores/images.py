"""Image codec of a store: JPEG q95 with colours at full size (4:4:4, default) or at half (4:2:0), or lossless PNG.

Legend: H height, W width.
"""

import io
from typing import Any, Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from stores.errors import StoreCorrupt, UsageError
from stores.schema import IMAGE_CODECS

JPEG_QUALITY: Final = 95
SUBSAMPLING: Final = {"jpeg": "444", "jpeg-420": "420"}


def encode_image(image: NDArray[np.uint8], codec: str = "jpeg", quality: int = JPEG_QUALITY) -> bytes:
    """uint8 RGB [H, W, 3] -> file bytes. `quality` is not for png. The same input gives the same bytes.

    Raises UsageError on an unknown codec or another dtype or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(f"image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if codec in SUBSAMPLING:
        encoded: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling=SUBSAMPLING[codec],
            fastdct=False,
        )  # fmt: skip
        return encoded
    if codec == "png":
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()
    raise UsageError(f"image codec: expected one of {IMAGE_CODECS}, got {codec!r}")


def decode_image(
    data: bytes, codec: str, out: NDArray[np.uint8] | None = None, name: str = "image"
) -> NDArray[np.uint8]:
    """File bytes -> uint8 RGB [H, W, 3], into contiguous `out` when given (whose shape must then match).

    Either jpeg releases the GIL. Raises StoreCorrupt naming `name`.
    """
    try:
        if codec in SUBSAMPLING:
            return _decode_jpeg(data, out, name)
        if codec == "png":
            from PIL import Image

            with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
                image = np.asarray(opened.convert("RGB"))
            if out is None:
                return image
            _check(name, image.shape, out)
            out[...] = image
            return out
    except (ValueError, OSError, SyntaxError) as error:  # PIL reports a broken PNG as SyntaxError
        raise StoreCorrupt(f"{name}: {len(data)} bytes are not a {codec} image: {error}") from error
    raise UsageError(f"image codec: expected one of {IMAGE_CODECS}, got {codec!r}")


def _decode_jpeg(data: bytes, out: NDArray[np.uint8] | None, name: str) -> NDArray[np.uint8]:
    buffer: dict[str, Any] = {} if out is None else {"buffer": out}
    try:
        image: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, colorspace="RGB", fastdct=False, fastupsample=False, **buffer
        )
    except ValueError:
        if out is not None:  # too large for the buffer? The header is only read to tell: it takes a share of the time
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
            _check(name, (height, width, 3), out)
        raise
    if out is None:
        return image
    _check(name, image.shape, out)
    return out


def _check(name: str, shape: tuple[int, ...], out: NDArray[np.uint8]) -> None:
    if shape != out.shape:
        raise StoreCorrupt(f"{name}: expected an image of {list(out.shape)}, got {list(shape)}")
