"""What importing the analysis room brings along."""

import subprocess
import sys

import neoteny.analysis


def test_import_is_light():
    code = (
        "import sys, neoteny.analysis; "
        "print(*(name for name in ('jax', 'scipy', 'matplotlib', 'polars') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_public_name_exists():
    for name in neoteny.analysis.__all__:
        getattr(neoteny.analysis, name)
    assert len(set(neoteny.analysis.__all__)) == len(neoteny.analysis.__all__)
