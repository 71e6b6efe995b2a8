"""A cache folder of the tests' own, so that the user's is neither read nor written, and scenes decomposed by the tiny model."""

from pathlib import Path

import pytest

from vlsae.splice import SpLiCE
from vlsae.world import scenes

PUBLISHED_FILES = Path(__file__).parents[3] / "shared" / "data" / "splice"


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLSAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder for one test."""
    monkeypatch.setenv("VLSAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def published_files() -> Path:
    """The files of SpLiCE's repository, which are not part of this one."""
    if not PUBLISHED_FILES.is_dir():
        pytest.skip(f"SpLiCE's published files are not at {PUBLISHED_FILES}")
    return PUBLISHED_FILES


@pytest.fixture(scope="session")
def sp(tiny, cache):
    return SpLiCE(tiny, "tiny", progress=False)


@pytest.fixture(scope="session")
def pictures():
    return scenes(12, seed=21)


@pytest.fixture(scope="session")
def x(tiny, pictures):
    """Their embeddings."""
    return tiny.encode_image(list(pictures)).numpy()


@pytest.fixture(scope="session")
def found(sp, x):
    return sp.decompose(x)


@pytest.fixture(scope="session")
def folder(pictures, tmp_path_factory):
    """The pictures in a folder of two classes."""
    place = tmp_path_factory.mktemp("pictures")
    for i, scene in enumerate(pictures):
        (place / "ab"[i % 2]).mkdir(exist_ok=True)
        scene.image.save(place / "ab"[i % 2] / f"{i:02}.png")
    return place
