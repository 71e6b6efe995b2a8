"""The package as a whole: light imports, one direction of the flow, small files, honest README."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vlsae

ROOT = Path(vlsae.__file__).parent
FLOW = ["registry", "atomic", "pickles", "stored", "torch_files", "weight_files", "threads", "onednn", "images", "world",
        "backbones", "activations", "dictionaries", "training", "splice", "concepts", "heatmaps", "interventions",
        "metrics", "adaptation", "report",
        "interop", "demo_words", "demo_adaptation", "demo_hierarchy", "demo_pairs", "demo", "evaluate", "cli"]  # fmt: skip


def _room(module: str) -> str:
    return module.split(".")[1]


def _imports(path: Path):
    """Every vlsae module that a file imports at run time, lazily or not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and isinstance(branch.test, ast.Name) and branch.test.id == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vlsae."):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("vlsae."))


def test_imports_follow_the_flow():
    """A room may import itself and earlier rooms only."""
    backward = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in ROOT.rglob("*.py")
        if (here := path.relative_to(ROOT).parts[0].removesuffix(".py")) in FLOW
        for module in _imports(path)
        if _room(module) in FLOW and FLOW.index(_room(module)) > FLOW.index(here)
    ]
    assert backward == []


def test_every_room_is_part_of_the_flow():
    rooms = {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms <= set(FLOW)


def _loaded_by(code: str) -> set[str]:
    script = f"import sys, json; {code}; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return set(json.loads(out.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import vlsae", "import vlsae.cli as c; c._parser()", "import vlsae.training"])
def test_light_imports_leave_the_heavy_libraries_alone(code):
    """What makes `import vlsae` and `vlsae --help` quick: none of these is touched."""
    assert not {"torch", "numpy", "matplotlib", "open_clip", "transformers", "sklearn", "PIL"} & _loaded_by(code)


def test_public_names_resolve():
    for name in vlsae.__all__:
        assert getattr(vlsae, name) is not None
    with pytest.raises(AttributeError, match="public names are"):
        _ = vlsae.nonsense


def test_files_stay_small():
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py")
            if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}  # fmt: skip
    assert long == {}


def test_version_is_the_installed_one():
    from importlib.metadata import version

    assert version("vlsae") == vlsae.__version__


def test_ci_runs_the_readmes_test_command():
    command = "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[test]' && pytest"
    top = ROOT.parent
    if not (top / ".ci" / "run").exists():
        pytest.skip("installed without the repository")
    assert command in (top / ".ci" / "run").read_text()
    assert command in (top / "README.md").read_text()
