"""Fixtures that every test may use. Folders with foreign ModelKits lie beside the project and may be absent."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

PROJECT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("KITFS_TEST_SHARED", PROJECT.parent / "shared"))

settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("dev", deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("nightly", deadline=None, max_examples=5000, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"{path} is absent (set KITFS_TEST_SHARED)")
    return path


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """ModelKits that other programs packed (read only)."""
    return _folder("fixtures")


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Test data from elsewhere (read only)."""
    return _folder("corpora")


@pytest.fixture
def store_home(tmp_path: Path) -> Path:
    """A fresh place for a store."""
    return tmp_path / "home"
