"""What users install is what stands here: the wheel, the sdist, the constraints and what the README names."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
LINKED = ("kernels", "weights")
SHAPES = REPOSITORY / "weights/shapes"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy: setuptools leaves traces where it builds."""
    folder = tmp_path_factory.mktemp("packaging")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    ).stdout.splitlines()
    source = folder / "source"
    for name in listed:
        file = REPOSITORY / name
        if not name.startswith(("tests/", "docs/", "benchmarks/")) and (file.exists() or file.is_symlink()):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if file.is_symlink():
                (source / name).symlink_to(file.readlink())
            else:
                (source / name).write_bytes(file.read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
    run = subprocess.run(build, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "dist"


def sources() -> dict[str, bytes]:
    """Every module, recipe and weight of the package by its installed path, the linked folders included."""
    files = {
        f"janus/{file.relative_to(REPOSITORY / 'janus')}": file
        for ending in ("py", "toml")
        for file in (REPOSITORY / "janus").rglob(f"*.{ending}")
        if file.relative_to(REPOSITORY / "janus").parts[0] not in LINKED
    }
    for folder in LINKED:
        files.update(
            {f"janus/{file.relative_to(REPOSITORY)}": file for file in (REPOSITORY / folder).rglob("*.py")}
        )
    files.update({f"janus/{file.relative_to(REPOSITORY)}": file for file in SHAPES.iterdir()})
    return {name: file.read_bytes() for name, file in files.items()}


def test_links_are_relative() -> None:
    for folder in LINKED:
        assert (REPOSITORY / "janus" / folder).readlink() == Path("..") / folder


def test_wheel_holds_the_sources_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith("janus_torch-")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
        expected = sources()
        assert names == {*expected, "janus/py.typed"}
        assert {name: archive.read(name) for name in expected} == expected
        metadata = {name.split("/")[-1] for name in archive.namelist()} - {
            name.split("/")[-1] for name in names
        }
        entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "janus = janus.apps.cli:main" in archive.read(entry_points).decode()
        assert "LICENSE" in metadata


@pytest.mark.parametrize("lost", LINKED)
def test_a_copy_that_has_lost_a_link_is_not_built(lost: str, tmp_path: Path) -> None:
    """As a zip's, where a link is a text file: the wheel would lack the package, and nobody would be told."""
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    (tmp_path / "janus").mkdir()
    for name in LINKED:
        (tmp_path / "janus" / name).symlink_to(REPOSITORY / name)
    (tmp_path / "janus" / lost).unlink()
    (tmp_path / "janus" / lost).write_text(f"../{lost}")
    command = [sys.executable, "setup.py", "--name"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1
    assert (
        f"janus/{lost} is no link to {lost}/ in this copy, as after unpacking a zip: install a clone"
        in run.stderr
    )


def test_sdist_holds_the_sources(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        for name, content in sources().items():
            member = archive.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/{name}")
            assert member is not None, name
            assert member.read() == content


def test_readme_names_files_that_exist() -> None:
    text = (REPOSITORY / "README.md").read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    paths = re.findall(r"(?<![\w/])(?:tests|docs|janus)/[\w./-]+\w", text)
    assert links
    for name in {*links, *paths}:
        assert (REPOSITORY / name).exists(), name


def test_constraints_name_every_dependency_that_the_tests_install() -> None:
    pinned = {
        line.split("==")[0]
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    text = (REPOSITORY / "pyproject.toml").read_text()
    blocks = re.findall(r"^(?:dependencies|test) = \[(.*?)^\]", text, re.S | re.M)
    required = {name for block in blocks for name in re.findall(r'^    "([A-Za-z0-9_-]+)', block, re.M)}
    assert len(blocks) == 2
    assert required <= pinned
