"""All is in pyproject.toml; this refuses to build what would not run."""

from pathlib import Path

from setuptools import setup

for name in ("weights", "kernels"):
    if not (Path(__file__).parent / "janus" / name / "__init__.py").is_file():
        raise SystemExit(
            f"janus/{name} is no link to {name}/ in this copy, as after unpacking a zip: install a clone "
            "made by git (on Windows with -c core.symlinks=true), or the wheel"
        )

setup()
