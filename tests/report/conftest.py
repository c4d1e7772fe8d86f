"""The synthetic study's figures, drawn once for all tests of the room."""

import pytest

import synthetic_study as synthetic


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """(folder, page) of the synthetic study, with its figures saved in the folder."""
    folder = tmp_path_factory.mktemp("study")
    return folder, synthetic.page(synthetic.drawn(folder))
