"""What README.md and the pages of docs/ say holds: their commands, their links, their paths."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from conftest import paint
from PIL import Image

from nas.cli import app

ROOT = Path(__file__).parents[1]
README, EXTENDING = ROOT / "README.md", ROOT / "docs" / "extending.md"
PROBLEMS = ROOT / "docs" / "problems.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md")), ROOT / "latency_tables" / "README.md"]
SMALLER = {
    "search": [
        "--evaluations",
        "2",
        "--search-images",
        "16",
        "--final-images",
        "16",
        "--test-images",
        "10",
    ],
    "train": ["--images", "300"],
    "finetune": ["--images", "64"],
    "measure": ["--rounds", "5"],
    "quantize": ["--images", "10", "--calibration", "4"],
}
COMMANDS = typer.main.get_command(app).commands


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, *languages):
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page, *languages):
    """The words of each `vitnas ...` of a page, without comments, in order."""
    found = []
    for block in blocks(page, *languages):
        for line in block.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if "vitnas" in words and words[words.index("vitnas") - 1] != "install":
                found.append(words[words.index("vitnas") + 1 :])
    return found


def documented_keys():
    """The keys that docs/runs.md promises of `run.json`, each with those inside it."""

    def read(tokens):
        keys, last = {}, None
        for token in tokens:
            if token == "{":
                keys[last] |= read(tokens)
            elif token == "}":
                return keys
            else:
                last = token
                keys.setdefault(token, {})
        return keys

    section = (ROOT / "docs" / "runs.md").read_text().partition("\n## JSON keys\n")[2]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    names = re.sub(r"\{\w+: \w+\}", "", " ".join(cells))  # {device: ms}: of any name
    return read(iter(re.findall(r"\w+|[{}]", names)))


def lacks(value, keys):
    """The documented keys that a JSON value does not have; of a list, its first entry."""
    first = value[0] if isinstance(value, list) else value
    for key, inner in keys.items():
        if key not in first:
            yield key
        elif inner:
            yield from (f"{key}.{name}" for name in lacks(first[key], inner))


def write_files(page, folder):
    """The files that a page shows, each in a block whose first line is its path."""
    for block in blocks(page, "python"):
        if path := re.match(r"# (\S+\.py)\n", block):
            (folder / path[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / path[1]).write_text(block)


def run_in(folder, *program):
    """A program that may import the modules in its folder."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"VITNAS_EXTENSIONS": "my_lab", "PYTHONPATH": path}
    program = [sys.executable, *program]
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)


def headings(page):
    """The anchors that GitHub makes of the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_opens_with_the_two_commands():
    text = README.read_text()
    assert "pip install . && vitnas search --budget 12ms" in text
    assert "pip install '.[test]' && pytest" in text
    assert text.index("vitnas search") < text.index("\n## ")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist_with_their_options(page):
    for command, *words in commands(page, "console", "sh"):
        COMMANDS[command].make_context(command, [word for word in words if word != "--debug"])


def test_every_command_is_shown():
    assert {words[0] for page in PAGES for words in commands(page, "console", "sh")} == {*COMMANDS}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder in which the commands of all pages run, in the order of the pages, each once."""
    folder = tmp_path_factory.mktemp("workshop")
    paint(folder / "photos", 12, size=64)
    Image.new("RGB", (300, 200), "grey").save(folder / "photo.jpg")
    write_files(EXTENDING, folder)
    done = set()

    def run(words):
        """With budgets twice as large: this may be a slower machine, and a busy one."""
        if tuple(words) in done:
            return
        done.add(tuple(words))
        words = [re.sub(r"^(\d+)ms$", lambda ms: f"{2 * int(ms[1])}ms", word) for word in words]
        result = run_in(folder, "-m", "nas.cli", *words, *SMALLER.get(words[0], []))
        assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"

    run(["search", "--budget", "12ms", "--out", "runs/first"])
    done.add(("search", "--budget", "12ms"))  # the same, in a directory with another name
    run.folder = folder
    return run


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_runs(page, workshop):
    """Those of `console` blocks; what stands in `sh` blocks needs hardware or a cluster."""
    for words in commands(page, "console"):
        workshop(words)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_program_of_a_page_runs(page, workshop):
    """With fewer images; files that a page shows, and searches of one's own, are tested below."""
    for block in blocks(page, "python") if page != PROBLEMS else ():
        if not block.startswith("# ") and "    space=" not in block:
            fewer = "evaluations=2, search_images=16, final_images=16, test_images=10"
            block = block.replace('search("12ms"', f'search("40ms", {fewer}')
            result = run_in(workshop.folder, "-c", block.replace("20_000", "200"))
            assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_run_has_the_documented_keys(workshop):
    result = json.loads((workshop.folder / "runs" / "first" / "run.json").read_text())
    keys = documented_keys()
    assert {"budget_ms", "answers", "winner", "seconds"} <= keys.keys()
    assert {"bound", "gap"} <= keys["quality"].keys()
    assert {"folder", "differences"} == keys["answers"]["exported"].keys()
    assert list(lacks(result, keys)) == []


def test_a_problem_of_ones_own_runs(tmp_path):
    own = [b for page in PAGES if page != PROBLEMS for b in blocks(page, "python")]
    (block,) = [b for b in own if "    space=" in b]
    result = run_in(tmp_path, "-c", block)
    assert "Found(architecture=Net(" in result.stdout, result.stderr


def test_the_page_on_problems_is_a_program_that_holds(tmp_path):
    """What it claims is asserted there; the names of its parts are those of the package."""
    result = run_in(tmp_path, "-c", "\n".join(blocks(PROBLEMS, "python")))
    assert result.returncode == 0, result.stderr
    assert "Found(architecture=Net(" in result.stdout
    for word in ("noise", "expected", "ENDED", "__post_init__", "where", "latency_calls", "None"):
        assert word in PROBLEMS.read_text()


def test_the_files_of_the_page_on_extending_work(tmp_path):
    """Data set, task, family and objective train; searcher and device are found by their names."""
    write_files(EXTENDING, tmp_path)
    (trained,) = [w for w in commands(EXTENDING, "console") if "--objective" in w]
    result = run_in(tmp_path, "-m", "nas.cli", *trained, "--images", "300")
    assert result.returncode == 0, result.stderr
    result = run_in(tmp_path, "-c", OWN_SEARCHER_AND_DEVICE)
    assert result.stdout == "120\n", result.stderr


OWN_SEARCHER_AND_DEVICE = """
from pathlib import Path
import nas, nas.runtimes, nas.strategy.searchers

nas.runtimes.__path__.append("nas/runtimes")
nas.strategy.searchers.__path__.append("nas/strategy/searchers")
space = nas.load_space("vit:debug")
slow, fast = (nas.profile(space, f"toy-npu,cores={n}", Path(f"table{n}")) for n in (1, 4))
ms = slow.predict(space, space.largest)
assert abs(ms / fast.predict(space, space.largest) - 4) < 0.1
found = nas.search(
    ms, space=space, latency=slow, score=lambda a: len(a.stages[0].blocks),
    searcher="greedy", evaluations=120,
)
assert found.best.score == 3
print(len(found.candidates))
"""


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "nas" / "README.md", ROOT / "experiments" / "README.md"], ids=name_of
)
def test_what_a_page_links_to_and_names_exists(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", text):
        target, _, anchor = "".join(link).partition("#")
        if target.startswith("http"):
            continue
        file = (page.parent / target) if target else page
        assert file.exists(), link
        if anchor:
            assert anchor in headings(file), link
    tops = "|".join(path.name for path in ROOT.iterdir() if path.is_dir())
    for path in re.findall(rf"`((?:{tops})/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_tree_of_the_layout_is_that_of_the_repository():
    """Every file of the engine and of the families stands in it, below its folder, and no other."""
    (tree,) = re.findall(r"^```\n(.*?)^```", (ROOT / "docs" / "layout.md").read_text(), re.S | re.M)
    named, parents = set(), []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [line.split()[0]]
        named.add("".join(parents))
    assert [path for path in named if not (ROOT / path).exists()] == []
    files = {p for top in ("nas", "search_spaces") for p in ROOT.glob(f"{top}/**/*.py")}
    files = {name_of(p) for p in files if p.name != "__init__.py"}
    assert {path for path in named if path.endswith(".py")} == files


@pytest.mark.parametrize(
    "path", ["nas/README.md", "experiments/README.md", "latency_tables/README.md"]
)
def test_every_folder_says_what_it_is(path):
    assert (ROOT / path).read_text().startswith("# ")
