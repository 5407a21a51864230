"""The package's metadata, its imports, its scripts and what its documents say."""

import ast
import configparser
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import chemeleon2_jax
from chemeleon2_jax.runs.config import load_config
from chemeleon2_jax.runs.config_checks import check_overrides

ROOT = Path(__file__).resolve().parents[1]
# Imported under another name than they are installed under.
DISTRIBUTIONS = {"absl": "absl-py", "orbax": "orbax-checkpoint", "PIL": "pillow"}


def normalise(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_requirements_are_written_once(setup_cfg):
    assert setup_cfg["options"]["install_requires"] == "file: requirements.txt"


def test_every_requirement_is_bounded(requirements, setup_cfg):
    extras = [
        Requirement(line)
        for text in setup_cfg["options.extras_require"].values()
        for line in text.split("\n")
        if line
    ]
    for requirement in [*requirements, *extras]:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({">=", "<"}, {"=="}), str(requirement)
    names = [normalise(requirement.name) for requirement in requirements]
    assert names == sorted(set(names))


def test_every_import_is_declared(requirements):
    declared = {normalise(requirement.name) for requirement in requirements}
    # Extras, imported where they are asked for; nequix comes without what it asks for.
    optional = {"ase", "chgnet", "equinox", "matscipy", "nequix", "wandb"}
    for path in [*ROOT.glob("chemeleon2_jax/**/*.py"), *ROOT.glob("launch/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in modules:
                top = module.partition(".")[0]
                if top in sys.stdlib_module_names or top in ("chemeleon2_jax", "launch"):
                    continue
                name = normalise(DISTRIBUTIONS.get(top, top))
                assert name in declared | optional, f"{path} imports {module}"


def test_every_requirement_is_used(requirements):
    """What no module imports stays out."""
    text = "\n".join(path.read_text() for path in ROOT.glob("chemeleon2_jax/**/*.py"))
    modules = {normalise(name): module for module, name in DISTRIBUTIONS.items()}
    for requirement in requirements:
        name = normalise(requirement.name)
        module = modules.get(name, requirement.name.replace("-", "_"))
        assert re.search(rf"^\s*(import|from) {module}\b", text, re.MULTILINE), name


def test_version_is_one(setup_cfg):
    assert setup_cfg["metadata"]["version"] == "attr: chemeleon2_jax.common.version.__version__"
    try:
        installed = importlib.metadata.version("chemeleon2_jax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("chemeleon2_jax is not installed here, only on the path")
    assert installed == chemeleon2_jax.__version__


def test_data_files_are_packaged(setup_cfg):
    patterns = [p.strip() for p in setup_cfg["options.package_data"]["*"].split(",")]
    for path in ROOT.glob("chemeleon2_jax/**/*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert any(path.match(pattern) for pattern in patterns), path


def test_import_is_light():
    code = (
        "import sys, chemeleon2_jax\n"
        "assert chemeleon2_jax.__version__\n"
        "assert 'load_model' in dir(chemeleon2_jax)\n"
        "assert not {'jax', 'numpy', 'pymatgen', 'flax'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'lod_model'"):
        _ = chemeleon2_jax.lod_model


@pytest.mark.parametrize("path", [*ROOT.glob("launch/*.sh"), ROOT / ".ci" / "run"], ids=str)
def test_scripts_parse_and_stop_at_errors(path):
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=60)
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()


def test_ci_runs_what_the_readme_says():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()[3:]
    commands = [line.partition("  #")[0] for line in lines]
    assert commands == ["bash launch/setup_env.sh test", "bash launch/test.sh"]
    assert set(commands) <= set(readme_commands())


def readme_commands():
    """Command lines of the README's bash blocks, continuation lines joined."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip()]


def documented_commands():
    """Command lines in the README, and in the docstrings of the configs and the mains."""
    commands = [c for c in readme_commands() if c.startswith("python -m chemeleon2_jax.")]
    mains = [*ROOT.glob("chemeleon2_jax/*.py"), *ROOT.glob("chemeleon2_jax/*/__main__.py")]
    for path in [*ROOT.glob("configs/**/*.py"), *mains]:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        lines = docstring.replace("\\\n", " ").splitlines()
        commands += [s for s in map(str.strip, lines) if s.startswith("python -m chemeleon2_jax.")]
    return commands


def test_documented_commands_exist():
    commands = documented_commands()
    assert len(commands) > 10
    for command in commands:
        words = shlex.split(re.sub(r"<[^>]*>", "x", command))
        module, arguments = words[2], words[3:]
        folder = ROOT / module.replace(".", "/")
        path = folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")
        assert path.is_file(), command
        if module == "chemeleon2_jax.train":
            config = load_config(f"{ROOT}/{arguments[0].removeprefix('--config=')}")
            check_overrides(config, arguments[1:])
            arguments = [a for a in arguments[1:] if not a.startswith("--config.")]
        sources = path.read_text() + (ROOT / "chemeleon2_jax/runs/joining.py").read_text()
        defined = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', sources))
        names = {argument.lstrip("-").partition("=")[0] for argument in arguments}
        assert names <= defined, command


def test_documented_files_exist():
    text = (ROOT / "README.md").read_text()
    mentioned = set(re.findall(r"`((?:configs|launch|notebooks|chemeleon2_jax)/[\w./]+)`", text))
    mentioned |= set(re.findall(r"\]\(([\w./]+)\)", text))
    missing = [path for path in sorted(mentioned) if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda p: p.name)
def test_notebooks_are_clean_and_compile(path):
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5)
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            compile("".join(cell["source"]), f"{path.name}:{cell['id']}", "exec")


def test_setup_script_explains_itself_and_refuses_other_flags(repository_dir):
    script = ["bash", str(repository_dir / "launch" / "setup_env.sh")]
    done = subprocess.run([*script, "--help"], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert "bash launch/setup_env.sh gpu notebook" in done.stdout
    listed = done.stdout.partition("Extras: ")[2].partition(";")[0].split(", ")
    config = configparser.ConfigParser()
    config.read(repository_dir / "setup.cfg")
    assert {*listed, "dev"} == set(config["options.extras_require"])
    done = subprocess.run([*script, "--gpu"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --gpu is no extra")
