"""Names are shown as they are in every format, and lead nowhere."""

import csv
import io
import json
import re
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib.text
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from tests.tuning.programs import needed
from tests.tuning.report.folders import write_trial
from tuning.report import escapes, figures, page, reading, tables
from tuning.report.summary import summarise

NAMES = [
    "kfac$_$v",
    "kfac[/x]",
    "kfac[v2]",
    "a|b",
    "<script>alert(1)</script>",
    "_x_",
    "`c` *d* &amp; ~~e~~",
    r"_ # { } ~ ^ \ % & <-->",
]
WORKLOADS = ["ogbg", "ogbg_gelu", "../../../up", "a/b", "A-b", "n" * 300]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every name on the first workload, and one submission on each of the others."""
    folder = tmp_path_factory.mktemp("names") / "in"
    cases = [(WORKLOADS[0], name) for name in NAMES] + [(workload, "k") for workload in WORKLOADS[1:]]
    for index, (workload, submission) in enumerate(cases):
        for trial in (1, 2):
            own = {"workload": workload, "submission": submission}
            place = folder / str(index) / "w_jax" / f"trial_{trial}"
            write_trial(place, [0.5, 0.9], point={"learning_rate": 0.1 * trial}, outcome=own, seed=trial)
    return folder


@pytest.fixture(scope="module")
def summary(folders):
    return summarise(reading.read([folders]), ["nadamw"])


@pytest.fixture(scope="module")
def html(folders):
    page.write([folders], folders.parent / "out", ["nadamw"])
    return (folders.parent / "out" / "index.html").read_text()


def cells(html: str, tag: str) -> list[str]:
    found: list[str] = []

    class Parser(HTMLParser):
        inside = False

        def handle_starttag(self, name, attributes):
            if name == tag:
                self.inside = True
                found.append("")

        def handle_endtag(self, name):
            self.inside = self.inside and name != tag

        def handle_data(self, data):
            if self.inside:
                found[-1] += data

    Parser().feed(html)
    return found


def test_the_page_shows_them_and_runs_none(html):
    assert set(NAMES) <= set(cells(html, "th"))
    assert len(cells(html, "script")) == 1
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_svg_files_are_valid_and_data_files_have_them(html, folders):
    out = folders.parent / "out"
    drawings = list(out.glob("*.svg"))
    assert drawings
    for file in drawings:
        ElementTree.parse(file)
    data = json.dumps(json.loads((out / "summary.json").read_text()))
    assert all(json.dumps(name)[1:-1] in data for name in NAMES)
    with open(out / "summary.csv", newline="") as file:
        assert set(NAMES) <= {row["submission"] for row in csv.DictReader(file)}


def test_each_workload_has_its_own_figures(html, summary):
    sections = re.findall(r"<section aria-labelledby=\"w-.*?</section>", html, re.DOTALL)
    shown = [re.findall(r'href="([a-z]+_[^"]*)\.png"', section) for section in sections]
    drawn = figures.figures(summary)
    assert shown == [[f.name for f in drawn if f.workload == c.workload] for c in summary.comparisons]
    assert all(len(names) == 3 for names in shown) and len({name.lower() for names in shown for name in names}) == 18


def test_nothing_is_written_outside_the_folder(html, folders):
    assert {path.name for path in folders.parent.iterdir()} == {"in", "out"}
    assert all(path.is_file() for path in (folders.parent / "out").iterdir())


def test_figures_show_them(summary):
    for figure in figures.figures(summary):
        if figure.workload == WORKLOADS[0]:
            with matplotlib.rc_context(figures.STYLE):
                drawn = figure.draw()
                texts = drawn.findobj(matplotlib.text.Text)
                assert set(NAMES) <= {text.get_text() for text in texts}
                assert not any(text.get_parse_math() for text in texts)


def test_the_terminal_shows_them(summary):
    console = Console(file=io.StringIO(), width=400)
    for comparison in summary.comparisons:
        console.print(tables.terminal(comparison))
    assert all(f" {name} " in console.file.getvalue() for name in NAMES)


def test_markdown_shows_them(summary):
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(tables.markdown(summary))
    rows = [row for row in rendered.split("<tr>") if "<td>" in row]
    firsts = [cells(row, "td")[0] for row in rows]
    assert set(NAMES) <= set(firsts) and "<em>" not in rendered and "<del>" not in rendered
    assert all(len(cells(row, "td")) == len(tables.COLUMNS) for row in rows)


def test_latex_letters():
    assert escapes.latex(r"_ # { } ~ ^ \ % & $") == (
        r"\_ \# \{ \} \textasciitilde{} \textasciicircum{} \textbackslash{} \% \& \$"
    )
    assert escapes.latex("a\n% b") == r"a \% b"


@pytest.mark.slow
def test_the_latex_table_compiles(summary, tmp_path):
    latex = needed("pdflatex", "--no-install-recommends", "texlive-latex-recommended")
    (tmp_path / "table.tex").write_text(tables.latex(summary))
    (tmp_path / "page.tex").write_text(
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}"
        r"\begin{document}\input{table}\end{document}"
    )
    command = [latex, "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
