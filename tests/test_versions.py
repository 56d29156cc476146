"""Versions that results name."""

import subprocess
import sys
from pathlib import Path

import iwsft_control
from iwsft_control.base.versions import SCORING, version

REPOSITORY = Path(__file__).parents[1]


def test_a_checkout_on_the_path_alone_has_a_version():
    """Results of a long run must not be lost because the package was never installed."""
    assert version("no-such-package-anywhere") == "not installed"
    assert all(version(name) != "not installed" for name in SCORING)
    assert iwsft_control.__version__ == version("iwsft_control")
    code = (
        "import importlib.metadata as m, sys; real = m.version\n"
        "def version(name):\n"
        "    if name == 'iwsft_control': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "import iwsft_control; from iwsft_control.benchmark import results\n"
        "print(iwsft_control.__version__, results.versions()['iwsft_control'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "not installed not installed"
