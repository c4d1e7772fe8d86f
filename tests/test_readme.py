"""The Python of the README runs as printed, given the reader's arrays."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import neoteny

README = Path(__file__).parent.parent / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_python_blocks_run_as_printed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    namespace = {
        "my_images": rng.integers(0, 256, (200, 4, 4, 1)).astype(np.uint8),
        "my_labels": np.arange(200) % 10,
    }
    blocks = python_blocks()
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    result = namespace["result"]
    assert isinstance(result, neoteny.Result)
    frame = result.frame()
    assert frame["task"].n_unique() == 10
    assert frame["seed"].n_unique() == 4
    ranks = frame.filter(frame["metric"] == "effective_rank")
    assert len(ranks) == 40
    assert ranks["place"].unique().to_list() == ["hidden"]
    assert (tmp_path / "accuracy.png").stat().st_size > 0


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", README.read_text())
    missing = [target for target in targets if not (README.parent / target).exists()]
    assert not missing


def test_example_is_about_ten_lines():
    (block,) = python_blocks()
    code = [line for line in block.splitlines() if line.strip()]
    assert len(code) <= 13


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_commands_are_targets(command):
    target = command.split()[1]
    assert re.search(rf"^{target}:", (README.parent / "Makefile").read_text(), flags=re.MULTILINE)
    assert command in README.read_text()
