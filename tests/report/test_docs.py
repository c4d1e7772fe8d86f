"""The results section of a documentation page says what the records say, and nothing else on the page changes."""

from __future__ import annotations

import dataclasses

import pytest
from matplotlib.figure import Figure

from neoteny.analysis import not_run
from neoteny.analysis.claims import Claim, evaluate
from neoteny.cli import main
from neoteny.errors import UsageError
from neoteny.lab.results import read, timed_packs
from neoteny.lab.study import StudyFigure, StudyTable
from neoteny.report.assemble import write_report
from neoteny.report.docs import write_docs

PAGE = "# tiny\n\nA question.\n\n<!-- results: tiny -->\nNot generated yet.\n<!-- /results: tiny -->\n\nAfter.\n"


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "tiny.md").write_text(PAGE)
    return folder


@pytest.fixture
def finished(tiny, tmp_path):
    out = tmp_path / "out"
    assert main(["run", "tiny", "--preset", "smoke", "--out", str(out)]) == 0
    return out


def test_the_command_fills_the_section_from_records_and_again_alike(tiny, finished, docs, capsys):
    assert main(["report", str(finished), "--docs", str(docs)]) == 0
    assert f"documentation: {docs / 'tiny.md'}" in capsys.readouterr().out
    text = (docs / "tiny.md").read_text()
    assert text.startswith("# tiny\n\nA question.\n")
    assert text.endswith("<!-- /results: tiny -->\n\nAfter.\n")
    assert "Not generated yet" not in text
    for claim in tiny.STUDY.claims:
        assert f"| {claim.id} |" in text
    for figure in tiny.STUDY.figures:
        if figure.draw(read(finished).records) is not None:
            assert (docs / "tiny" / f"{figure.name}.png").is_file()
            assert f"](tiny/{figure.name}.png)" in text
    assert main(["report", str(finished), "--docs", str(docs)]) == 0
    assert (docs / "tiny.md").read_text() == text


def test_figures_no_longer_drawn_are_removed_and_text_cannot_break_the_table(tiny, finished, docs):
    claims = tuple(dataclasses.replace(claim, paper="a | b <i>") for claim in tiny.STUDY.claims)
    (docs / "tiny").mkdir()
    (docs / "tiny" / "stale.png").write_bytes(b"")
    write_docs(finished, dataclasses.replace(tiny.STUDY, claims=claims), docs)
    assert not (docs / "tiny" / "stale.png").exists()
    assert "a \\| b &lt;i>" in (docs / "tiny.md").read_text()


def test_tables_stand_after_the_verdicts_where_their_records_are(tiny, finished, docs):
    def counted(frame):
        return ("runs", "a|b"), [(str(frame["run"].n_unique()), "<x>")]

    tables = (
        StudyTable("counted", "Runs", "How many.", counted),
        StudyTable("absent", "Nothing", "Never.", lambda frame: None),
    )
    write_docs(finished, dataclasses.replace(tiny.STUDY, tables=tables), docs)
    text = (docs / "tiny.md").read_text()
    runs = read(finished).records["run"].n_unique()
    assert f"**Runs.** How many.\n\n| runs | a\\|b |\n| --- | --- |\n| {runs} | &lt;x> |\n" in text
    assert "Nothing" not in text
    assert text.index("| claim | quantity |") < text.index("**Runs.**")
    page = write_report(finished, dataclasses.replace(tiny.STUDY, tables=tables))[0].read_text()
    assert "<h2>Runs</h2>\n<p>How many.</p>" in page
    assert f"<td>{runs}</td><td>&lt;x&gt;</td>" in page
    assert "Nothing" not in page
    assert page.index('id="verdicts"') < page.index("<h2>Runs</h2>") < page.index('id="cost"')


def test_claims_about_speed_are_judged_by_the_timings(tiny, finished, docs):
    def packs(frame, timings):
        return not_run(f"{len(timings)} timed rows")

    claim = Claim("TINY-9", "It is fast", "nowhere", packs, timed=True)
    write_docs(finished, dataclasses.replace(tiny.STUDY, claims=(claim,)), docs)
    assert f"| {len(timed_packs(read(finished)))} timed rows |" in (docs / "tiny.md").read_text()


@pytest.mark.parametrize(
    "page", [None, "no marks", "<!-- /results: tiny -->\n<!-- results: tiny -->", PAGE + "<!-- results: tiny -->"]
)
def test_a_page_without_its_marks_is_left_as_it_is(tiny, finished, docs, page):
    path = docs / "tiny.md"
    path.unlink()
    if page is not None:
        path.write_text(page)
    with pytest.raises(UsageError, match="results: tiny"):
        write_docs(finished, tiny.STUDY, docs)
    assert not path.exists() or path.read_text() == page


def test_results_of_another_preset_have_a_section_of_their_own(tiny, finished, docs):
    other = "<!-- results: tiny long -->\nNothing yet.\n<!-- /results: tiny long -->\n"
    (docs / "tiny.md").write_text(PAGE + other)
    absent = Claim("TINY-9", "Never asked", "nowhere", lambda frame: not_run("no such runs"))
    figure = StudyFigure("line", "A line", "Flat.", lambda frame: Figure())
    study = dataclasses.replace(tiny.STUDY, claims=(*tiny.STUDY.claims, absent), figures=(figure,))
    write_docs(finished, study, docs, "long")
    text = (docs / "tiny.md").read_text()
    assert text.startswith(PAGE)
    judged = {claim["id"]: claim["verdict"] for claim in evaluate(study.claims, read(finished).records)}
    assert {"holds", "fails", "inconclusive"} & set(judged.values())
    for claim, verdict in judged.items():
        assert (f"| {claim} |" in text) == (verdict != "not_run"), claim
    assert "](tiny/long/line.png)" in text
    assert (docs / "tiny" / "long" / "line.png").is_file()
    write_docs(finished, study, docs)
    assert (docs / "tiny.md").read_text().endswith(text[len(PAGE) :])
    assert (docs / "tiny" / "long" / "line.png").is_file()
    write_docs(finished, dataclasses.replace(study, claims=(absent,)), docs, "long")
    assert "| claim |" not in (docs / "tiny.md").read_text().split("results: tiny long -->")[1]


def test_a_section_needs_a_plain_name_and_a_page(tiny, finished, docs, capsys):
    with pytest.raises(UsageError, match="lower-case letters"):
        write_docs(finished, tiny.STUDY, docs, "../up")
    assert main(["report", str(finished), "--section", "long"]) == 2
    assert "--docs" in capsys.readouterr().err
    assert main(["report", str(finished), "--docs", str(docs), "--section", "long"]) == 2
    assert "results: tiny long" in capsys.readouterr().err
