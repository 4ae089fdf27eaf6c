"""What holds of the source as a whole: imports run one way, sockets are honest, files stay small, nothing happens on import."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from pipeline.config import plugins

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}

GROUND = ["errors", "records", "device", "timing", "child_python"]
"""Files that all may import, and that import nothing but each other."""
ROOMS = [
    "config",
    "video",
    "datasets",
    "models",
    "cache",
    "extract",
    "train",
    "experiments",
    "report",
    "search",
    "exchange",
    "cli",
]
"""Data order, which is tree order: each may import itself and what stands before it."""
APART = {"train": "extract"}
"""Room -> the room before it that it must do without: training never needs what made the cache."""
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, LINES_OF_A_ROOM = 500, 80, 10
FILES_OF_A_ROOM = range(3, 13)
"""Beside its sub-folders; `__init__` and `__main__` are not counted."""
EDGES = {
    "config": "errors records",
    "video": "child_python config device errors records",
    "datasets": "config errors records video",
    "models": "config datasets device errors records",
    "cache": "config datasets device errors records",
    "extract": "cache child_python config datasets device errors models records timing video",
    "train": "cache config datasets device errors models records timing video",
    "experiments": "cache child_python config datasets device errors extract models records train video",
    "report": "cache config datasets errors experiments models records train",
    "search": "cache errors models records report train",
    "exchange": "cache child_python config datasets errors extract models records train",
    "cli": "cache child_python config datasets device errors exchange experiments extract models records report "
    "search timing train video",
}
"""Room -> every room and ground file that something in it imports, 85 in all. A new word here is a
decision."""

SOCKETS = [(kind, name) for kind in plugins.FOLDERS for name in plugins.names(kind)]
SOCKET_FOLDERS = {plugins.module_of(kind).removeprefix("pipeline.") for kind in plugins.FOLDERS}
CONTRACT_NAMES = {"Settings", *(kind.capitalize() for kind in plugins.FOLDERS)}
"""Names of classes that `plugins.load` looks for in every plug-in."""


def dotted(kind: str) -> str:
    return plugins.module_of(kind).removeprefix("pipeline.")


def module_name(file: Path) -> str:
    """`pipeline/encoders/address.py` -> `encoders.address`; a package is its folder's name, the root is empty."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of everything imported anywhere: in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if is_module(inner) else node.module


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def ours(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The imports of this project, named as `module_name` names them."""
    for line, name in imports(tree):
        if name.split(".")[0] == "pipeline":
            yield line, name.removeprefix("pipeline").removeprefix(".")


def users_of(package: str) -> set[str]:
    return {
        module_name(file)
        for file, tree in TREES.items()
        if package in {name.split(".")[0] for _, name in imports(tree)}
    }


def text_files() -> list[Path]:
    """Every text file that belongs to the project, whether committed yet or not."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(
            listing, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    return [file for file in files if b"\0" not in file.read_bytes()]


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def folder_of_plugin(module: str) -> str | None:
    """The plug-in folder that a module lies in at whatever depth, dotted, or None."""
    return next(
        (
            folder
            for folder in SOCKET_FOLDERS
            if module == folder or module.startswith(f"{folder}.")
        ),
        None,
    )


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_file_is_in_a_room_or_on_the_ground():
    assert {room(module_name(file)) for file in FILES} - {""} == {*GROUND, *ROOMS}
    assert {room(folder) for folder in SOCKET_FOLDERS} <= set(ROOMS)


def test_imports_run_one_way():
    order = [*GROUND, *ROOMS]
    wrong = []
    for file, tree in TREES.items():
        here = room(module_name(file))
        for line, target in ours(tree):
            there = room(target)
            inside = there == here and here not in GROUND
            allowed = not there or inside or (here != "" and order.index(there) < order.index(here))
            if not allowed or APART.get(here) == there:
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports pipeline.{target}")
    assert not wrong


def test_nothing_here_imports_the_page_of_public_names():
    assert users_of("stillframe") == set()


def test_rooms_know_no_more_rooms_than_is_written_here():
    edges: dict[str, set[str]] = {}
    for file, tree in TREES.items():
        here = room(module_name(file))
        there = {room(target) for _, target in ours(tree)} - {here, ""}
        if here and there:
            edges.setdefault(here, set()).update(there)
    assert {here: " ".join(sorted(there)) for here, there in edges.items()} == EDGES


def test_a_room_has_three_to_twelve_files():
    """Folders of plug-ins are lists, as long as there are plug-ins."""
    counts = {}
    for folder in {file.parent for file in FILES} - {PACKAGE}:
        name = ".".join(folder.relative_to(PACKAGE).parts)
        if name not in SOCKET_FOLDERS:
            counts[name] = sum(
                file.stem not in ("__init__", "__main__") for file in folder.glob("*.py")
            )
    assert {name: count for name, count in counts.items() if count not in FILES_OF_A_ROOM} == {}


def test_a_room_begins_with_a_short_docstring_and_nothing_else():
    """`pipeline` has its version, which the build reads; `cli` has what the script and typer name."""
    wrong = []
    for file, tree in TREES.items():
        if file.name != "__init__.py" or module_name(file) == "":
            continue
        docstring, *rest = tree.body
        lines = (ast.get_docstring(tree) or "").splitlines()
        if module_name(file) == "cli":
            names = {name.removeprefix("pipeline.cli.main.") for _, name in imports(tree)}
            rest = [node for node in rest if not isinstance(node, ast.ImportFrom)]
            assert names == {"pipeline.cli.main"}
        if rest or not isinstance(docstring, ast.Expr) or not 1 <= len(lines) <= LINES_OF_A_ROOM:
            wrong.append(str(file.relative_to(ROOT)))
    assert wrong == []


def is_command(node: ast.AST) -> bool:
    """Whether typer makes a command of this function; its name is what a person types."""
    decorators = getattr(node, "decorator_list", [])
    return any(
        re.match(r"((bench|manifest)_)?app\.command\b", ast.unparse(each)) for each in decorators
    )


def test_a_public_name_is_defined_once():
    """Apart from commands, and from what the contract of a plug-in asks every plug-in to define."""
    defined: dict[str, list[str]] = {}
    for file, tree in TREES.items():
        for node in tree.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
                continue
            in_plugin = folder_of_plugin(module_name(file)) and node.name in CONTRACT_NAMES
            if not in_plugin and not is_command(node):
                defined.setdefault(node.name, []).append(module_name(file))
    twice = {name: files for name, files in defined.items() if len(files) > 1}
    assert twice == {}


def test_imports_make_no_circle():
    graph = {
        module_name(file): {target for _, target in ours(tree) if target != module_name(file)}
        for file, tree in TREES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_a_plugin_imports_its_contract_and_helpers_and_no_other_plugin():
    """Helpers lie in a folder of their own, or begin with an underscore."""
    plugin_modules = {f"{dotted(kind)}.{name}" for kind, name in SOCKETS}
    allowed = {("datasets.playback", "datasets.folder")}
    wrong = []
    for file, tree in TREES.items():
        here = module_name(file)
        socket = folder_of_plugin(here)
        if socket is None:
            continue
        for line, target in ours(tree):
            if (
                folder_of_plugin(target) == socket
                and target in plugin_modules
                and (here, target) not in allowed
            ):
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports pipeline.{target}")
    assert not wrong


def test_nothing_outside_a_plugin_folder_names_a_plugin():
    plugin_modules = {f"{dotted(kind)}.{name}" for kind, name in SOCKETS}
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports pipeline.{target}"
        for file, tree in TREES.items()
        for line, target in ours(tree)
        if target in plugin_modules
        and folder_of_plugin(module_name(file)) != folder_of_plugin(target)
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("package", "owners"),
    [("rich", {"cli.console"}), ("zarr", {"cache.store", "cache.store_writer"})],
)
def test_what_alone_imports(package, owners):
    """Measurements also read through zarr itself, as a reference."""
    users = {user for user in users_of(package) if not user.startswith("cli.bench.")}
    assert users == owners


def test_one_room_alone_knows_the_command_line():
    assert {room(user) for user in users_of("typer")} == {"cli"}


@pytest.mark.parametrize(
    "package", ["pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torchvision"]
)
def test_nothing_imports(package):
    assert users_of(package) == set()


def test_only_plain_data_is_loaded():
    wrong = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.hub.load":
                wrong.append(f"{where} {ast.unparse(node)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if given.get("weights_only") != "True":
                    wrong.append(f"{where} torch.load without weights_only=True")
            risky = isinstance(node, ast.keyword) and node.arg in (
                "trust_remote_code",
                "allow_pickle",
            )
            if risky and ast.unparse(node.value) != "False":
                wrong.append(f"{where} {node.arg}")
            if isinstance(node, ast.Name) and node.id in ("eval", "exec"):
                wrong.append(f"{where} {node.id}")
    assert not wrong


def test_files_are_short():
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines())
        for file in FILES
    }
    assert {name: n for name, n in lengths.items() if n > LINES_OF_A_FILE} == {}


def test_functions_are_short():
    lengths = {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": (node.end_lineno or 0)
        - node.lineno
        + 1
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > LINES_OF_A_FUNCTION} == {}


def test_every_file_says_what_it_is():
    assert [
        str(file.relative_to(ROOT)) for file, tree in TREES.items() if not ast.get_docstring(tree)
    ] == []


def test_importing_everything_prints_nothing_and_writes_nothing(tmp_path):
    modules = [f"pipeline.{module_name(file)}".rstrip(".") for file in FILES]
    code = f"import importlib, sys\nsys.path.insert(0, {str(ROOT)!r})\nfor name in {modules!r}: importlib.import_module(name)"
    code += "\nassert 'transformers' not in sys.modules"  # a second, which few commands need
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


HELP = """
import json, sys
sys.path.insert(0, {root!r})
from pipeline.cli.main import main
code = main({arguments!r})
print(json.dumps([code, sorted({{name.split(".")[0] for name in sys.modules}})]))
"""


HEAVY = {"torch", "zarr", "numpy", "h5py", "av", "transformers", "matplotlib"}


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], HEAVY | {"pydantic"}),
        (["extract", "--help"], HEAVY),
        (["bench", "extract", "--help"], HEAVY),
    ],
)
def test_help_waits_for_nothing_heavy(arguments, unwanted, tmp_path):
    """typer itself imports pydantic to read the options of a command."""
    done = python(HELP.format(root=str(ROOT), arguments=arguments), tmp_path)
    *shown, last = done.stdout.splitlines()
    code, loaded = json.loads(last)
    assert (code, done.stderr) == (0, "")
    assert "Usage:" in shown[0]
    assert unwanted & set(loaded) == set()


@pytest.mark.parametrize(("kind", "name"), SOCKETS)
def test_a_plugin_keeps_its_contract(kind, name):
    plugin = plugins.load(kind, name)
    contract = getattr(
        importlib.import_module(f"{plugins.module_of(kind)}.{plugins.CONTRACT}"),
        plugins.BASES[kind],
    )
    assert issubclass(plugin, contract)
    assert not getattr(plugin, "__abstractmethods__", None)
    assert issubclass(plugin.Settings, plugins.Settings)
    what, settings = plugins.describe(kind, name)
    assert what.endswith((".", "?", ")")) and len(what) > 30
    assert all(field in settings for field in plugin.Settings.model_fields)


@pytest.mark.parametrize(("kind", "name"), SOCKETS)
def test_every_setting_of_a_plugin_is_explained(kind, name):
    tree = TREES[PACKAGE / plugins.FOLDERS[kind] / f"{name}.py"]
    tables = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    ]
    assert len(tables) <= 1
    own = inspect.get_annotations(plugins.load(kind, name).Settings)
    assert tables or not own
    assert [field for table in tables for field in unexplained(table)] == []


def unexplained(table: ast.ClassDef) -> list[str]:
    """Fields without a docstring on the line under them."""
    followed = zip(table.body, [*table.body[1:], None], strict=True)
    return [
        ast.unparse(field.target)
        for field, after in followed
        if isinstance(field, ast.AnnAssign)
        and not (
            isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        )
    ]


def test_no_file_names_a_place_on_one_machine():
    homes = "|".join(("work", "root", "home", "Users"))
    pattern = re.compile(rf"(?<![\w.~<>{{}}$*)\]/-])/(?:{homes})(?:/|\b)")
    found = [
        f"{file.relative_to(ROOT)}:{number} {line.strip()}"
        for file in text_files()
        for number, line in enumerate(
            file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
        )
        if pattern.search(line)
    ]
    assert found == []
