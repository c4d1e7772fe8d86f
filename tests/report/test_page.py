import dataclasses
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

import synthetic_study as synthetic
from neoteny.report import Cost, NextCommand, Page, Paper, RenderedFigure, RunRow, read_figure, render

VOID = {"meta", "img", "br", "hr", "link", "input", "line", "circle", "path"}


class Outline(HTMLParser):
    """Checks that tags are balanced and keeps attributes, ids and text."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.attributes, self.words, self.tags = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


def bare(**parts):
    return Page(**{"title": "T", "study": "s", "preset": "smoke", "question": "Q?", **parts})


@pytest.fixture(scope="module")
def html(study):
    return render(study[1])


@pytest.fixture(scope="module")
def outline(html):
    return Outline(html)


def test_the_page_is_whole(html, outline):
    assert html.startswith("<!DOCTYPE html>")
    for words in (
        "Does Adam lose plasticity when labels change?",
        "3 hold 1 fails 1 inconclusive 1 not run",
        "26 24 finished, 1 diverged, 1 failed",
        "27 min 03 s",
        "654 TFLOP",
        "no longer finite at update 9412",
        "neoteny run plasticity --preset paper",
        "about 42 min",
        "[−0.522, −0.341]",
        "[0.33, ∞)",
        "in 2 parts",
        "213 updates/s",
    ):
        assert words in outline.text, words
    ids = [value for _, name, value in outline.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for tag, name, value in outline.attributes if name == "href" and value.startswith("#")}
    assert targets == {"verdicts", "figures", "cost", "runs", "configuration", "next", "environment"}
    assert targets <= set(ids)


def test_nothing_is_loaded_from_elsewhere(html, outline):
    assert not {"script", "link", "iframe", "object", "embed"} & set(outline.tags)
    sources = [value for _, name, value in outline.attributes if name in ("src", "srcset", "data", "poster")]
    assert len(sources) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "@import" not in html
    assert "url(" not in html
    links = {value for tag, name, value in outline.attributes if name == "href" and "://" in value}
    assert links == {"https://arxiv.org/abs/2303.01486"}


def test_figures_are_the_stored_files_and_their_links_lead_there(study, outline):
    folder, page = study
    links = {value for _, name, value in outline.attributes if name == "href" and value.startswith("figures/")}
    assert len(links) == 12
    assert all((folder / link).is_file() for link in links)
    assert page.figures[0].image == (folder / "figures" / "accuracy.svg").read_bytes()


def test_text_is_escaped():
    evil = '<script>alert("x")</script> & `<b>`'
    page = bare(
        title=evil,
        question=evil,
        subtitle=evil,
        answer=(evil,),
        notes=(evil,),
        paper=Paper(evil, "javascript:alert(1)"),
        verdicts=({"id": evil, "statement": evil, "verdict": "holds", "paper": evil, "reason": evil},),
        figures=(RenderedFigure(evil, evil, b"<svg onload='x'/>", title=evil, files={"SVG": 'a"b c.svg'}),),
        runs=(RunRow(evil, evil, evil, "failed", error=evil),),
        costs=(Cost(evil, evil, 1, 1),),
        next_commands=(NextCommand(evil, evil),),
        environment={evil: evil},
        configuration={},
    )
    html = render(page)
    outline = Outline(html)
    assert "script" not in outline.tags
    assert outline.tags.count("b") == 3  # study, preset and the measured value
    assert "<b>`" not in html
    assert "&lt;b&gt;" in html
    assert "javascript:" not in html
    assert ("a", "href", "a%22b%20c.svg") in outline.attributes


def test_missing_numbers_are_never_called_nan(study):
    nan = math.nan
    verdicts = (
        {
            "id": "A",
            "statement": "a",
            "verdict": "inconclusive",
            "paper": nan,
            "measured": nan,
            "interval": [nan, nan],
        },
        {"id": "B", "statement": "b", "verdict": "not_run", "interval": None, "n": None},
    )
    costs = (Cost("e", "p", 4, 10, nan, nan, None, nan, nan), Cost("e", "q", 4, 10, 1.0, 2.0))
    html = render(dataclasses.replace(study[1], verdicts=verdicts, costs=costs, figures=()))
    text = Outline(html).text
    assert not re.search(r"\b(nan|NaN|None|inf)\b", text)
    assert text.count("n/a") > 8


def test_an_empty_page_has_no_empty_sections():
    outline = Outline(render(bare()))
    assert "section" not in outline.tags
    assert "none tested" not in outline.text


def test_runs_without_claims_say_so():
    assert "none tested" in Outline(render(bare(runs=(RunRow("r", "e", "s", "finished"),)))).text


def test_costs_are_rates_over_all_lanes_without_compiling():
    cost = Cost("e", "p", 8, 1000, seconds=12.0, compile_seconds=2.0, flops_train=3e9, flops_probe=1e9)
    assert cost.updates_per_second == 800
    assert cost.flops_per_second == 4e8
    assert Cost("e", "p", 8, 1000, seconds=2.0, compile_seconds=2.0).updates_per_second is None
    assert Cost("e", "p", 8, 1000).flops is None


def test_the_whisker_is_to_scale():
    verdict = {
        "id": "A",
        "statement": "a",
        "verdict": "holds",
        "paper": "10",
        "measured": 4.0,
        "interval": [2.0, 8.0],
    }
    attributes = Outline(render(bare(verdicts=(verdict,)))).attributes
    found = [(tag, name, float(value)) for tag, name, value in attributes if name in ("x1", "x2", "cx")]
    (zero, _), (low, high) = [
        tuple(value for tag, _, value in found[start : start + 2] if tag == "line") for start in (0, 2)
    ]
    (dot,) = [value for tag, _, value in found if tag == "circle"]
    scale = (high - low) / 6
    assert low - zero == pytest.approx(2 * scale, abs=0.15)
    assert dot - zero == pytest.approx(4 * scale, abs=0.15)
    (diamond,) = [value for tag, name, value in attributes if (tag, name) == ("path", "d")]
    assert float(re.match(r"M([\d.]+) ", diamond)[1]) + 4 - zero == pytest.approx(10 * scale, abs=0.25)


def test_parts_of_parts_are_shown():
    leaf = {
        "name": "leaf",
        "measured": 0.25,
        "interval": None,
        "n": 3,
        "verdict": "holds",
        "reason": "",
        "parts": [],
    }
    branch = {**leaf, "name": "branch", "measured": None, "parts": [leaf]}
    claim = {"id": "A", "statement": "a", "verdict": "holds", "measured": None, "parts": [branch]}
    text = Outline(render(bare(verdicts=(claim,)))).text
    assert "leaf" in text
    assert "0.25" in text


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        ({"id": "A", "statement": "a", "verdict": "maybe"}, "A: verdict 'maybe'"),
        ({"id": "A", "verdict": "holds"}, "no 'statement'"),
        (
            {"id": "A", "statement": "a", "verdict": "holds", "parts": [{"name": "p", "verdict": None}]},
            "part 'p'",
        ),
    ],
)
def test_a_verdict_that_is_none_is_an_error(verdict, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        render(bare(verdicts=(verdict,)))


def test_content_is_checked_where_it_is_made(tmp_path):
    with pytest.raises(ValueError, match="status 'crashed'"):
        RunRow("r", "e", "s", "crashed")
    with pytest.raises(ValueError, match="image/gif"):
        RenderedFigure("f", "c", b"", "image/gif")
    with pytest.raises(ValueError, match=r"no \.svg"):
        read_figure("f", "c", [tmp_path / "f.png"], page_folder=tmp_path)


def test_backticks_are_code_and_a_lonely_one_is_itself():
    html = render(bare(question="use `b2 = 0.9` or `"))
    assert "use <code>b2 = 0.9</code> or `" in html


def test_rendering_needs_neither_jax_nor_matplotlib():
    script = (
        "import sys, neoteny.report as report\n"
        "assert not {'jax', 'matplotlib', 'jinja2', 'scipy'} & set(sys.modules), 'eager'\n"
        "report.render(report.Page('t', 's', 'smoke', 'q'))\n"
        "assert not {'jax', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_synthetic_study_is_rendered_the_same_twice(study, html):
    assert render(synthetic.page(study[1].figures)) == html
