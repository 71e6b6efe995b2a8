"""Notebooks: each pair holds the same cells, and each runs from scratch, offline, on the embedded model.

`python -m tests.e2e.test_notebooks [NAME ...]` runs them and writes the .ipynb of each pair.
"""

import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from jupyter_client.kernelspec import KernelSpecManager  # noqa: E402
from jupyter_client.manager import AsyncKernelManager  # noqa: E402

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
LARGEST = 1_500_000  # bytes of an executed notebook: it is cloned by everybody

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])


def _cells(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in jupytext.read(path).cells]


def _kernel(folder: Path) -> AsyncKernelManager:
    """A kernel of this very interpreter, whatever kernels the user has installed under the name python3."""
    spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "Python 3", "language": "python"}  # fmt: skip
    place = folder / "kernels" / "python3"
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(json.dumps(spec))
    specs = KernelSpecManager(kernel_dirs=[str(folder / "kernels")], ensure_native_kernel=False)
    return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)


def _executed(path: Path, folder: Path, **environment: str):
    """The notebook with its outputs; raises CellExecutionError with the cell and its traceback."""
    work = folder / "work"
    work.mkdir()
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "VLSAE_CACHE": str(folder / "cache"),  # nothing of earlier runs
        "HF_HUB_OFFLINE": "1",
        "IPYTHONDIR": str(folder / "ipython"),  # no start-up files of the user
        **environment,
    }
    env.pop("MPLBACKEND", None)  # the notebook's own is the inline one
    notebook = jupytext.read(path)
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"  # random ones would differ every time
    client = nbclient.NotebookClient(
        notebook, km=_kernel(folder), timeout=300, record_timing=False, resources={"metadata": {"path": str(work)}}
    )
    client.execute(env=env)
    assert not list(work.iterdir()), "a notebook leaves files behind"
    return notebook


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_the_pair_is_in_step(path):
    pair = path.with_suffix(".ipynb")
    assert pair.exists(), f"{pair.name} is missing; notebooks/README.md has the command that makes it"
    assert _cells(pair) == _cells(path), f"{pair.name} is older than {path.name}; make it again (notebooks/README.md)"
    assert pair.stat().st_size < LARGEST
    code = [cell for cell in jupytext.read(pair).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "not executed from top to bottom"


@pytest.fixture(scope="module")
def running(request, tmp_path_factory):
    """The runs of all notebooks that were asked for, two at a time with a thread each: shorter than one after another."""
    asked = [item.callspec.params["path"] for item in request.session.items
             if getattr(item, "originalname", "") == "test_it_runs_from_scratch"]  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        longest_first = sorted(asked, key=lambda path: -path.with_suffix(".ipynb").stat().st_size)
        yield {
            p: pool.submit(_executed, p, tmp_path_factory.mktemp(p.stem), OMP_NUM_THREADS="1") for p in longest_first
        }


@each_notebook
def test_it_runs_from_scratch(path, running):
    code = [cell for cell in running[path].result().cells if cell.cell_type == "code"]
    warned = [o.text for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not warned


if __name__ == "__main__":
    for one in NOTEBOOKS:
        if len(sys.argv) == 1 or one.stem in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as place:
                jupytext.write(_executed(one, Path(place)), one.with_suffix(".ipynb"))
