"""The page of the report, read as text and looked at in Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fxprune.analysis.flow import GradientNorms
from fxprune.errors import ReportError
from fxprune.live import LiveChange
from fxprune.model import PruneRecord
from fxprune.report import CompressionReport
from fxprune.report.file import FileBytes
from fxprune.report.latency import DenseFile
from fxprune.report.page import page, write_page
from fxprune.report.statistics import Histogram, WeightRow

HOSTILE = '</td><script>document.title = "taken"</script>&amp;"\'<img src=x onerror=alert(1)>'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (Debian: apt install chromium)")


def row(name: str, numel: int, kept: int, **other: object) -> WeightRow:
    values = {"effective": kept, "cut_off": None, "macs": 10 * numel, "nonzero_macs": 10 * kept, "deployed": True}
    return WeightRow(name, (numel // 2, 2), ("linear",), False, numel, kept, **{**values, **other})  # type: ignore[arg-type]


@pytest.fixture
def report() -> CompressionReport:
    """With everything that a report may have, names that are no good among it."""
    rows = (
        row("stem.weight", 2000, 1500),
        row(HOSTILE, 90, 9, effective=0, cut_off=f"because of {HOSTILE}"),
        row("empty.weight", 300, 0),
        row("a." + "very_long_name_" * 12 + ".weight", 1_000_000, 20_000),
    )
    record = PruneRecord(
        criterion="grasp",
        sparsity=0.9,
        rounds=1,
        ranking="global",
        floor=0.05,
        floor_used=0.1,
        floored=("stem.weight",),
        live=True,
        changes=(LiveChange("bn." + HOSTILE, "scale of at most 0 counted as one"),),
        zero_share=0.25,
        cut_off=(1,),
        sanity=None,
        seed=0,
    )
    return CompressionReport(
        rows=rows,
        skipped={HOSTILE: "bias of linear", "b.bias": f"reason {HOSTILE}"},
        parameters=1_100_000,
        record=record,
        dense_bytes=4_400_000,
        histogram=Histogram((-1.0, -0.5, 0.5, 1.0), (10, 20_000, 1)),
        file=FileBytes("net.onnx", 200_000, 150_000, 140_000, 180_000, {"gaps": 170_000, "other": 30_000}, 7),
        dense=DenseFile(4_410_000, 1, 2, 50, 2.0, 2.1, "ONNX Runtime 1"),
        gradient=GradientNorms(1.5, 3.0),
    )


class Reader(HTMLParser):
    """Collects tags with their attributes, the cells of tables by their id, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text: list[str] = []
        self._rows: list[list[str]] | None = None
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._rows = self.tables.setdefault(str(dict(attrs)["id"]), [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows:
            self._rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._in_cell and self._rows:
            self._rows[-1][-1] += data


def test_it_needs_no_other_file(report: CompressionReport) -> None:
    text = page(report)
    read = Reader(text)
    assert text.startswith("<!doctype html>")
    for tag, attributes in read.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base"), tag
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert re.findall(r"https?://[^\"'<\s]+", text.replace("http://www.w3.org/", "")) == []
    assert "@import" not in text
    assert all("#" in found for found in re.findall(r"url\([^)]*\)", text))


def test_names_are_text_and_nothing_else(report: CompressionReport) -> None:
    text = page(report)
    read = Reader(text)
    assert "<img" not in text
    assert [tag for tag, _ in read.tags].count("script") == 1
    assert read.tables["weights"][2][0] == HOSTILE
    assert read.tables["cut-off"][1:] == [[HOSTILE, f"because of {HOSTILE}"]]
    assert read.tables["skipped"][1:] == [[HOSTILE, "bias of linear"], ["b.bias", f"reason {HOSTILE}"]]
    assert read.tables["changes"][1][0] == "bn." + HOSTILE


def test_tables_and_sentences_have_the_numbers(report: CompressionReport) -> None:
    read = Reader(page(report))
    assert read.tables["weights"][0] == [
        "weight", "shape", "elements", "kept", "sparsity", "effective", "MACs", "non-zero"
    ]  # fmt: skip
    assert read.tables["weights"][1] == [
        "stem.weight", "1000x2", "2,000", "1,500", "25.00%", "25.00%", "20,000", "15,000"
    ]  # fmt: skip
    text = " ".join("".join(read.text).split())
    totals = report.totals
    for number in (
        f"{totals['kept']:,} of {totals['prunable']:,} prunable kept",
        f"{totals['effective']:,} weights lie on a path",
        "4,410,000 in a dense ONNX file, 200,000 in the ONNX file (0.045 of the dense one)",
        "150,000 under gzip, 140,000 under zstd; the entropy bound is 180,000",
        "by encoding: gaps 170,000, other 30,000",
        "7 kept values are zero in the file",
        "dense 2 ms, sparse 2.1 ms, ratio 1.05",
        "multiply zeros like any other number",
        "1.5 before pruning, 3 after, 2 times as much",
        "nothing is left of 1 weights: empty.weight",
        "1 weights are cut off",
        "outputs (1,) no longer depend on the input",
    ):
        assert number in text, number


def test_there_are_four_plots_with_identifiers_of_their_own(report: CompressionReport) -> None:
    text = page(report)
    read = Reader(text)
    assert [tag for tag, _ in read.tags].count("svg") == 4
    identifiers = [str(attributes["id"]) for _, attributes in read.tags if "id" in attributes]
    for wanted in re.findall(r'(?:url\(|href=")#([^")]+)', text):
        assert identifiers.count(wanted) == 1, wanted
    assert "var(--kept)" in text
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", text)  # the colours that stand for the page's
    assert "#000000" not in text  # black is unreadable in the dark


def test_what_was_not_measured_is_left_out(report: CompressionReport) -> None:
    bare = replace(report, file=None, dense=None, gradient=None, record=None, skipped={}, rows=report.rows[:1])
    read = Reader(page(bare))
    assert [tag for tag, _ in read.tags].count("svg") == 3
    assert set(read.tables) == {"weights"}
    text = "".join(read.text)
    assert "latency" not in text
    assert "gzip" not in text
    assert "None" not in text
    assert "multiply zeros like any other number" in text


def test_the_same_report_gives_the_same_bytes(report: CompressionReport) -> None:
    assert page(report) == page(report)


def test_the_file_appears_whole_or_not_at_all(report: CompressionReport, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    write_page(report, target)
    assert target.read_text(encoding="utf-8") == page(report)
    with pytest.raises(ReportError, match="got a folder"):
        write_page(report, tmp_path)
    with pytest.raises(ReportError, match="expected a file in a folder that exists"):
        write_page(report, tmp_path / "nosuch" / "report.html")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


# --- in a browser


def browse(text: str, folder: Path, script: str, *options: str, size: str = "390,844") -> dict[str, object]:
    """What a script, run at the end of the page, returns."""
    probe = (
        "<pre id='probe'></pre><script>document.getElementById('probe').textContent = "
        f"JSON.stringify((() => {{ {script} }})())</script></body>"
    )
    (folder / "page.html").write_text(text.replace("</body>", probe), encoding="utf-8")
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        f"--window-size={size}", *options, "--dump-dom", (folder / "page.html").as_uri(),
    ]  # fmt: skip
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    (found,) = re.findall(r'<pre id="probe">(.*?)</pre>', dumped, re.DOTALL)
    result: dict[str, object] = json.loads(html.unescape(found))
    return result


@in_a_browser
def test_on_a_phone_nothing_overflows(report: CompressionReport, tmp_path: Path) -> None:
    script = """
        const root = document.documentElement, plots = [...document.querySelectorAll("svg")];
        return {page: root.scrollWidth, window: innerWidth, title: document.title,
                plots: plots.map(svg => svg.getBoundingClientRect().width),
                heights: plots.map(svg => svg.getBoundingClientRect().height)};
    """
    seen = browse(page(report), tmp_path, script)
    assert seen["window"] <= 500, "the window is no phone's"
    assert seen["page"] <= seen["window"]
    assert seen["title"] == "Compression report"  # no name of a layer ran as a script
    assert all(0.7 * seen["window"] < width <= seen["window"] for width in seen["plots"])
    assert all(150 < height < 500 for height in seen["heights"])


@in_a_browser
def test_a_click_sorts_by_value_and_a_second_one_turns_the_order(
    report: CompressionReport, tmp_path: Path
) -> None:
    script = """
        const table = document.getElementById("weights");
        const column = i => [...table.tBodies[0].rows].map(row => row.cells[i].textContent);
        const heads = table.querySelectorAll("thead th");
        const click = i => heads[i].querySelector("button").click();
        const found = {before: column(2)};
        click(2); found.ascending = column(2); found.state = heads[2].getAttribute("aria-sort");
        click(2); found.descending = column(2); found.turned = heads[2].getAttribute("aria-sort");
        click(4); found.sparsity = column(4);
        click(0); found.names = column(0);
        return found;
    """
    seen = browse(page(report), tmp_path, script)
    ordered = ["90", "300", "2,000", "1,000,000"]
    assert seen["before"] == ["2,000", "90", "300", "1,000,000"]
    assert (seen["ascending"], seen["state"]) == (ordered, "ascending")
    assert (seen["descending"], seen["turned"]) == (ordered[::-1], "descending")
    assert seen["sparsity"] == ["25.00%", "90.00%", "98.00%", "100.00%"]
    assert seen["names"][1:] == [report.rows[3].name, "empty.weight", "stem.weight"]  # type: ignore[index]


@in_a_browser
def test_light_and_dark_differ_and_both_can_be_read(report: CompressionReport, tmp_path: Path) -> None:
    script = """
        const style = getComputedStyle(document.body);
        const text = document.querySelector("svg text"), bar = [...document.querySelectorAll("svg path")]
            .map(path => getComputedStyle(path).fill);
        return {page: style.backgroundColor, text: style.color, plot: getComputedStyle(text).fill, bars: bar};
    """
    light = browse(page(report), tmp_path, script)
    dark = browse(page(report), tmp_path, script, "--blink-settings=preferredColorScheme=0")
    assert _brightness(light["page"]) > 0.9 > 0.2 > _brightness(light["text"])
    assert _brightness(dark["page"]) < 0.2 < 0.8 < _brightness(dark["text"])
    for seen in (light, dark):
        assert abs(_brightness(seen["plot"]) - _brightness(seen["page"])) > 0.6
    assert light["bars"] != dark["bars"]


def _brightness(colour: object) -> float:
    return sum(map(int, re.findall(r"\d+", str(colour))[:3])) / (3 * 255)
