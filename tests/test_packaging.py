"""The package is what setup.cfg, the docs and the architecture say."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.tree import DOCS, ROOT, TESTS

ROOMS = ("model", "storage", "actors", "cli", "server", "testing")
OPTIONAL = {"hypothesis", "pytest"}
"""What those have who use it: nothing else imports what needs it."""
CLOCK = ROOT / "model" / "clock.py"


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def words(text: str) -> list[str]:
    """The lines of a value of setup.cfg."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def sources(*rooms: str) -> Iterator[Path]:
    """Every module of the rooms."""
    for room in rooms:
        yield from sorted((ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The names of the modules that the module at `path` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


# What is packaged


def test_every_folder_that_is_a_package_is_listed(setup_cfg):
    folders = {
        path.parent.relative_to(ROOT)
        for top in ROOT.glob("[a-z]*/__init__.py")
        for path in top.parent.rglob("__init__.py")
    }

    listed = words(setup_cfg["options"]["packages"])
    assert sorted(listed) == sorted(".".join(("perdure", *folder.parts)) for folder in folders)


def test_every_room_is_mapped_to_its_folder(setup_cfg):
    mapped = words(setup_cfg["options"]["package_dir"])
    assert mapped == [f"perdure.{room} = {room}" for room in ROOMS]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_that_it_is_typed(setup_cfg, room):
    assert setup_cfg["options.package_data"][f"perdure.{room}"] == "py.typed"
    installed = importlib.util.find_spec(f"perdure.{room}")
    assert (Path(installed.origin).parent / "py.typed").exists()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_refuses_its_bare_folder_name(room):
    spec = importlib.util.spec_from_file_location(room, ROOT / room / "__init__.py")
    module = importlib.util.module_from_spec(spec)

    with pytest.raises(ImportError, match=rf"perdure\.{room}"):
        spec.loader.exec_module(module)


# What it depends on


def bounds(text: str) -> dict[str, str]:
    """The lower bound of each distribution, by its name."""
    found = (re.match(r"([\w.-]+)(?:>=|==)([\w.]+)", line) for line in words(text))
    return {match[1]: match[2] for match in found if match}


def test_the_lower_bounds_that_are_run_are_those_of_the_package(setup_cfg):
    declared = bounds(setup_cfg["options"]["install_requires"])
    declared |= bounds(setup_cfg["options.extras_require"]["test"])

    assert bounds((TESTS / "lowest.txt").read_text(encoding="utf-8")) == declared


def test_what_is_required_is_imported_and_what_is_imported_is_required(setup_cfg):
    declared = bounds(setup_cfg["options"]["install_requires"])
    required = {name.partition(".")[0].lower() for name in declared}
    used = {name.partition(".")[0] for path in sources(*ROOMS) for name in imported(path)}

    others = {name.lower() for name in used - sys.stdlib_module_names - {"perdure"}}
    assert others - OPTIONAL == required


def test_pytest_is_needed_by_nothing_but_its_plugin(setup_cfg):
    users = {path for path in sources(*ROOMS) if "pytest" in imported(path)}
    plugins = words(setup_cfg["options.entry_points"]["pytest11"])

    assert users == {ROOT / "testing" / "plugin.py"}
    assert plugins == ["perdure = perdure.testing.plugin"]


def test_what_an_extra_adds_is_needed_by_the_simulator_alone_and_tested_at_the_same_bound(
    setup_cfg,
):
    extra = bounds(setup_cfg["options.extras_require"]["testing"])
    rooms = [room for room in ROOMS if room != "testing"]
    used = {name.partition(".")[0].lower() for path in sources(*rooms) for name in imported(path)}

    assert not used & set(extra)
    assert extra.items() <= bounds(setup_cfg["options.extras_require"]["test"]).items()


@pytest.mark.slow
@pytest.mark.process
def test_the_simulator_is_imported_without_its_extra_and_says_what_needs_it():
    code = (
        "import sys\n"
        "sys.modules['hypothesis'] = sys.modules['pytest'] = None\n"
        "import perdure.testing\n"
        "from perdure.testing import World\n"
        "for name in ('RuntimeMachine', 'strategies'):\n"
        "    try:\n"
        "        getattr(perdure.testing, name)\n"
        "    except ImportError as error:\n"
        "        assert 'install perdure[testing]' in str(error), error\n"
        "    else:\n"
        "        raise AssertionError(name)\n"
        "assert not hasattr(perdure.testing, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# What the rooms promise each other


def test_a_room_is_imported_by_its_whole_name():
    wrong = [
        (str(path), name)
        for path in sources(*ROOMS)
        for name in imported(path)
        if name.partition(".")[0] in ROOMS
    ]
    assert wrong == []


def test_the_model_imports_no_actor():
    wrong = [
        (str(path), name)
        for path in sources("model")
        for name in imported(path)
        if name.startswith(("perdure.actors", "perdure.cli", "perdure.storage", "pykka"))
    ]
    assert wrong == []


def test_the_storage_knows_little_of_the_model_and_nothing_of_actors():
    known = ("errors", "clock", "lockfile", "localsocket", "environment", "given", "moved")
    wrong = [
        (str(path), name)
        for path in sources("storage")
        for name in imported(path)
        if name.startswith(("perdure.", "pykka"))
        and not name.startswith("perdure.storage")
        and not name.startswith(tuple(f"perdure.model.{module}" for module in known))
    ]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.process
def test_importing_the_model_starts_no_thread_and_no_actor():
    code = (
        "import sys, threading, perdure.model\n"
        "assert threading.enumerate() == [threading.main_thread()], threading.enumerate()\n"
        "assert 'pykka' not in sys.modules and 'perdure.actors' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.process
def test_importing_what_tests_use_imports_nothing_before_it_is_used():
    code = (
        "import sys, perdure.testing\n"
        "assert not {'ZODB', 'pykka', 'perdure.model'} & {*sys.modules}, sys.modules\n"
        "assert 'World' in dir(perdure.testing)\n"
        "assert perdure.testing.World.__name__ == 'World' and 'ZODB' in sys.modules\n"
        "assert not {'pytest', 'hypothesis'} & {*sys.modules}, sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_what_is_no_name_of_what_tests_use_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Wrold'"):
        importlib.import_module("perdure.testing").Wrold  # noqa: B018


def test_the_model_makes_no_thread():
    makers = {"Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor", "start_new_thread"}
    wrong = [
        f"{path}:{node.lineno}"
        for path in sources("model")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in makers
    ]
    assert wrong == []


def test_only_the_clock_reads_the_time_and_waits():
    wrong = [
        f"{path}:{number}: {what}"
        for path in sources(*ROOMS)
        if path != CLOCK
        for number, what in uses_of_time(path.read_text(encoding="utf-8"))
    ]
    assert wrong == []


def uses_of_time(source: str) -> Iterator[tuple[int, str]]:
    """Each place of a module that takes the time, or sleeps, by itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if "time" in names and isinstance(node, ast.Import):
                yield node.lineno, "import time"
            elif isinstance(node, ast.ImportFrom) and node.module == "time":
                yield node.lineno, "from time import"
        elif isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today"):
            if ast.unparse(node.value).rpartition(".")[2] in ("datetime", "date"):
                yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from time import sleep",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime\nnow = datetime.utcnow",
        "from datetime import date\ndate.today()",
    ],
)
def test_a_use_of_the_time_is_found(source):
    assert list(uses_of_time(source))


@pytest.mark.parametrize("source", ["clock.now()", "from datetime import datetime", "self.time()"])
def test_the_use_of_a_clock_is_no_use_of_the_time(source):
    assert list(uses_of_time(source)) == []


# What is public


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_on_the_reference_page_and_no_other(room):
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    directives = re.findall(
        rf"^\.\. auto(?:class|data|exception|function|module):: perdure\.{room}\.(\w+)$",
        page,
        re.MULTILINE,
    )

    assert sorted(directives) == sorted(importlib.import_module(f"perdure.{room}").__all__)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_exists_and_says_what_it_is(room):
    module = importlib.import_module(f"perdure.{room}")

    undocumented = [
        name
        for name in module.__all__
        if (isinstance(getattr(module, name), type) or callable(getattr(module, name)))
        and not getattr(module, name).__doc__
    ]
    assert undocumented == []


# What the usual files say


def test_the_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = words(script)[-1]

    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


def test_the_changes_begin_with_the_version_of_the_package(setup_cfg):
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGES.md").read_text("utf-8"), re.MULTILINE)

    assert versions[0] == setup_cfg["metadata"]["version"]
