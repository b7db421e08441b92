"""Image codecs and .npy members against PIL and NumPy."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stores.errors import StoreCorrupt, UsageError
from stores.images import decode_image, encode_image
from stores.npy import decode_npy, encode_npy
from stores.schema import IMAGE_CODECS

SMOOTH = (np.add.outer(np.arange(48), np.arange(64))[..., None] + np.array([0, 40, 80])).astype(np.uint8)


def test_png_is_lossless_and_jpeg_nearly(monkeypatch) -> None:
    np.testing.assert_array_equal(decode_image(encode_image(SMOOTH, "png"), "png"), SMOOTH)
    error = np.abs(decode_image(encode_image(SMOOTH), "jpeg").astype(int) - SMOOTH)
    assert error.max() <= 8
    assert error.mean() < 1.5


def test_jpeg_is_full_colour_and_read_alike_by_pil() -> None:
    image = Image.open(io.BytesIO(encode_image(SMOOTH)))
    assert {(h, v) for _, h, v, _ in image.layer} == {(1, 1)}  # 4:4:4: no channel is subsampled
    assert np.abs(np.asarray(image).astype(int) - decode_image(encode_image(SMOOTH), "jpeg")).max() <= 1


def test_jpeg_420_halves_the_colours_alone() -> None:
    data = encode_image(SMOOTH, "jpeg-420")
    image = Image.open(io.BytesIO(data))
    assert [(h, v) for _, h, v, _ in image.layer] == [(2, 2), (1, 1), (1, 1)]
    assert np.abs(np.asarray(image).astype(int) - decode_image(data, "jpeg-420")).max() <= 1
    red = np.zeros((16, 16, 3), np.uint8)
    red[:, ::2, 0] = 255  # what 4:2:0 cannot hold, and 4:4:4 does
    lost, kept = (np.abs(decode_image(encode_image(red, c), c).astype(int) - red).mean() for c in ("jpeg-420", "jpeg"))
    assert lost > 5 * kept


@pytest.mark.parametrize("codec", IMAGE_CODECS)
def test_decoding_into_a_buffer(codec: str) -> None:
    data = encode_image(SMOOTH, codec)
    out = np.zeros((2, *SMOOTH.shape), np.uint8)
    decode_image(data, codec, out[1])
    np.testing.assert_array_equal(out[1], decode_image(data, codec))
    assert not out[0].any()
    with pytest.raises(StoreCorrupt, match="frame 3: expected an image of"):
        decode_image(data, codec, np.zeros((8, 8, 3), np.uint8), "frame 3")


@pytest.mark.parametrize("codec", IMAGE_CODECS)
def test_broken_bytes_are_named(codec: str) -> None:
    data = encode_image(SMOOTH, codec)
    for broken in (b"", b"not an image", data[: len(data) // 2]):
        with pytest.raises(StoreCorrupt, match=f"frame 3: .* not a {codec} image"):
            decode_image(broken, codec, np.zeros(SMOOTH.shape, np.uint8), "frame 3")


def test_wrong_input_is_refused() -> None:
    with pytest.raises(UsageError, match="uint8"):
        encode_image(SMOOTH.astype(np.float32))
    with pytest.raises(UsageError, match="webp"):
        encode_image(SMOOTH, "webp")
    with pytest.raises(UsageError, match="webp"):
        decode_image(b"", "webp")


SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(SHAPES, st.sampled_from(["float32", "bool", "int64", "uint8"]))
def test_npy_bytes_are_those_of_numpy(shape: tuple[int, ...], dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    buffer = io.BytesIO()
    np.save(buffer, array)
    data = encode_npy(array)
    back = decode_npy(data, "x")
    assert data == buffer.getvalue()
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_npy_refuses_pickles_and_damage() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"code": 1}], dtype=object), allow_pickle=True)
    good = encode_npy(np.zeros((3, 2), np.float32))
    for broken in (buffer.getvalue(), b"", good[:-1], good[:20], good.replace(b"<f4", b"<q9")):
        with pytest.raises(StoreCorrupt, match="member x"):
            decode_npy(broken, "member x")
