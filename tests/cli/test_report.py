"""A run's report: it stands alone, shows what happened, and neither it nor its pictures change the run."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from limbeck import Karras, commands
from limbeck.cli import main
from limbeck.evaluate import report
from limbeck.evaluate.cost import cost
from limbeck.evaluate.lines import read_metrics
from limbeck.evaluate.svg import Axis, Series, panel, thin

HERE = Path(__file__).parent
QUICK, STAGES = str(HERE.parent / "faults" / "quick.py"), str(HERE.parent / "faults" / "stages.py")
TINY, SCORE = str(HERE / "tiny.py"), str(HERE / "score.py")
VOID = {"meta", "img", "br"}
LOADS = {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}

NOTED = """from dataclasses import dataclass
@dataclass(frozen=True, kw_only=True)
class Noted(KD):
    note: str = ""


def student("""
"""An objective with a text among its settings."""


class Page(HTMLParser):
    """A page, read as a browser would: every tag closed where it should be, texts by what they are in."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if "table" in self.open:
            self.cells.append(data)

    def text(self, tag: str) -> list[str]:
        """What stands in elements of this kind."""
        return [data for where, data in self.texts if where == tag]

    def every(self, tag: str) -> list[dict[str, str]]:
        """The attributes of elements of this kind."""
        return [attributes for name, attributes in self.tags if name == tag]

    def tables(self) -> dict[str, list[str]]:
        """The cells of every row of a table, by the first."""
        return {cell: self.cells[k + 1 : k + 4] for k, cell in enumerate(self.cells)}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with a judge that takes no time."""
    monkeypatch.chdir(tmp_path)
    figures = {"frechet": 0.5, "nfe": 1, "frechet_teacher": 0.25, "nfe_teacher": 5, "frechet_heldout": 0.125}
    monkeypatch.setattr(commands.comparison, "evaluate", lambda student, problem: figures)


def distill(*args: str) -> tuple[Path, Page]:
    """Runs a recipe to its end; its folder and its report."""
    assert main(["distill", *args, "--out", "run"]) == 0
    return Path("run"), Page(Path("run/report.html").read_text())


def test_what_it_shows() -> None:
    """Title, paper, what was changed, figures beside the teacher, curves of every loss and norm, pictures over time."""
    run, page = distill(
        TINY, "--on", TINY, "--steps", "20", "--rate", "0.5", "--objective.dmd.times", "Uniform(lo=0.1)"
    )
    assert page.text("h1") == ["tiny on tiny"] and "finished" in page.text("span")
    assert page.every("a") == [{"href": "https://arxiv.org/abs/0000.00000"}]
    table = page.tables()
    assert table["steps"][:2] == ["20", "60"] and table["optim.default.lr"][:2] == ["0.5", "0.001"]
    assert table["objective.dmd.times"][:2] == ["Uniform(lo=0.1, hi=0.98)", repr(Karras(lo=0.02, hi=0.98))]
    assert table["Fréchet"] == ["0.5", "0.25", "0.125"] and table["NFE"][:2] == ["1", "5"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for kind in ("losses", "norms"):
        drawn = [part for part in page.every("figure") if part["class"] == f"panel {kind}"]
        assert len(drawn) == len({name for line in lines for name in line[kind]}) > 1
    pictures = sorted(path.name for path in (run / "samples").iterdir())
    assert pictures == [f"00-{i:08d}.png" for i in (0, 2, 5, 10, 20)] + ["final.png"]
    assert [text for text in page.text("figcaption") if text.startswith("tick")] == [
        f"tick {i} · {share} %" for i, share in ((0, 0), (2, 10), (5, 25), (10, 50), (20, 100))
    ]
    assert len(page.every("img")) == 6


def test_it_stands_alone() -> None:
    """No script, and nothing is loaded but pictures in the page itself; a link to the paper is all it links to."""
    _, page = distill(SCORE, "--on", TINY, "--steps", "4")
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    assert "default-src 'none'" in "".join(part.get("content", "") for part in page.every("meta"))
    loaded = [(tag, name, value) for tag, part in page.tags for name, value in part.items() if name in LOADS]
    assert {(tag, name, value[:22]) for tag, name, value in loaded} == {
        ("a", "href", "https://arxiv.org/abs/"),
        ("img", "src", "data:image/png;base64,"),
    }
    assert not [part for _, part in page.tags if any(name.startswith("on") for name in part)]
    assert not any(word in "".join(page.text("style")) for word in ("url(", "@import", "http"))
    bare = Path("run/report.html").read_text().replace("https://arxiv.org/abs/2209.14988", "")
    assert "://" not in bare


def test_what_a_user_wrote_is_text(tmp_path: Path) -> None:
    """Names, settings and the paper, with all that HTML gives a meaning to."""
    bad = "<script>alert('\\\"&')</script>"
    text = Path(QUICK).read_text()
    for old, new in (
        ('"""A user', f'"""{bad} A user'),
        ('"nobody"', f'"{bad}"'),
        ('"0000.00000"', f'"x\\" onclick=1 {bad}"'),
        ('text="learns"', f'text="{bad}"'),
        ("steps: int = 40", f'steps: int = 40, note: str = "{bad}"'),
        ("KD(alpha=0.5)", "Noted(alpha=0.5, note=note)"),
        ("def student(", NOTED),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "<b>&amp;.py"
    path.write_text(text)
    _, page = distill(str(path), "--on", QUICK, "--steps", "2", "--note", "</code></table><script>1</script>")
    assert {tag for tag, _ in page.tags}.isdisjoint({"script"}) and page.every("a") == []
    assert page.text("h1") == ["<b>&amp; on quick"]
    assert "</code></table><script>1</script>" in page.text("code")
    assert sum("<script>alert('\"&')</script>" in data for _, data in page.texts) >= 3


def test_stages_share_their_ticks() -> None:
    """Those that are trained follow each other, with a mark between them; what is made has no ticks."""
    _, page = distill(STAGES, "--on", QUICK, "--steps", "30")
    assert [text for text in page.text("text") if text in ("labels", "again", "views")] == 3 * ["labels", "again"]
    assert len([part for part in page.every("path") if part.get("class") == "border"]) == 3
    assert "30 + 40" in page.text("dd")


def test_pictures_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student without a moving average and with dropout is what it would be without them."""
    for out in ("with", "without"):
        assert main(["distill", TINY, "--on", TINY, "--steps", "8", "--ema", "none", "--out", out]) == 0
        monkeypatch.setattr(commands, "moments", lambda *args: lambda stage, i, student: None)
    names = ("metrics.jsonl", "stages/tiny/state.safetensors")
    assert [Path("with", name).read_bytes() for name in names] == [Path("without", name).read_bytes() for name in names]
    assert len([*Path("with/samples").iterdir()]) == 6 and len([*Path("without/samples").iterdir()]) == 1


def test_a_picture_that_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on, and says so."""

    def fail(*args: object, **settings: object) -> None:
        raise ValueError("no\nink")

    monkeypatch.setattr("limbeck.evaluate.picture.bare", fail)
    _, page = distill(TINY, "--on", TINY, "--steps", "2")
    assert "there is no picture at tick 0: ValueError: no ink.\n" in capsys.readouterr().out
    assert len(page.every("img")) == 1


def test_resumed_from_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the pictures and figures of an uninterrupted run, from the same bits."""
    args = ("distill", TINY, "--on", TINY, "--steps", "20")
    assert main([*args, "--out", "whole"]) == 0
    tick, ticks = commands.Session.__iter__, iter(range(9))

    def stop(session: commands.Session):  # type: ignore[no-untyped-def]
        for step in tick(session):
            session.stopping = next(ticks, None) is None
            yield step

    monkeypatch.setattr(commands.Session, "__iter__", stop)
    assert main([*args, "--out", "run"]) == 130
    assert "interrupted: stage tiny, tick 10" in Page(Path("run/report.html").read_text()).text("span")
    monkeypatch.setattr(commands.Session, "__iter__", tick)
    assert main([*args, "--out", "run", "--resume"]) == 0
    for path in (*Path("whole/samples").iterdir(), Path("whole/metrics.jsonl")):
        assert (Path("run") / path.relative_to("whole")).read_bytes() == path.read_bytes()
    spent = cost(Path("run"))
    assert spent is not None and spent.attempts == 2 and spent.seconds > 0 and (spent.peak or 0) > 1e7
    assert any(text.endswith(", in 2 parts") for text in Page(Path("run/report.html").read_text()).text("dd"))


def test_killed_before_any_checkpoint() -> None:
    """There is a report of what was begun; resumed, one of all, which does not say what cannot be known any more."""
    args = ["distill", QUICK, "--on", QUICK, "--steps", "1000", "--out", "run"]
    process = subprocess.Popen([sys.executable, "-m", "limbeck", *args, "--checkpoint-every", "0"])
    wait(lambda: Path("run/metrics.jsonl").exists() and Path("run/metrics.jsonl").stat().st_size > 0, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    page = Page(Path("run/report.html").read_text())
    assert "begun" in page.text("span") and "training" not in page.text("dt")
    assert main([*args, "--resume"]) == 0
    page = Page(Path("run/report.html").read_text())
    assert "finished" in page.text("span") and page.every("svg") and "training" not in page.text("dt")
    assert cost(Path("run")) is None


def wait(until: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Until something has happened, while a process runs."""
    deadline = time.monotonic() + 120
    while not until():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_that_fails() -> None:
    """It says why, and shows the curves up to there."""
    args = ["distill", QUICK, "--on", QUICK, "--lr", "1e30", "--optim.default.schedule", "1.0", "--out", "run"]
    assert main(args) == 1
    page = Page(Path("run/report.html").read_text())
    assert [text for text in page.text("span") if text.startswith("failed: 10 updates in a row of 'student'")]
    assert [text for text in page.text("p") if text.startswith("Updates that were not finite and were left out: ")]


def test_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written now and then, whole or not at all, and never so often that it costs much."""
    seen: list[str] = []
    monkeypatch.setattr(report, "write_report", lambda folder, about, status: seen.append(status))
    distilled = ["distill", QUICK, "--on", QUICK, "--steps", "5", "--out"]
    assert main([*distilled, "seldom"]) == 0 and seen == ["begun", "trained"]
    monkeypatch.setattr(report, "EVERY", 0.0)
    monkeypatch.setattr(report.time, "monotonic", iter(range(10**6)).__next__)
    seen.clear()
    assert main([*distilled, "often"]) == 0
    assert seen[0] == "begun" and seen[-1] == "trained"
    assert all(status.startswith("under way: stage learn, tick ") for status in seen[1:-1])


def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that cannot be written while a run is under way does not end it."""

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_report", full)
    assert main(["distill", QUICK, "--on", QUICK, "--steps", "2", "--out", "run"]) == 0


BEGAN, ENDED = '{"began": ""}\n', '{"seconds": 1, "peak": 1}\n'


@pytest.mark.parametrize("text", ["", "{", BEGAN, BEGAN + BEGAN + ENDED, BEGAN + ENDED + BEGAN, ENDED, "[]\n[]"])
def test_a_cost_that_is_not_known(tmp_path: Path, text: str) -> None:
    """Unless every attempt that began has ended."""
    (tmp_path / "attempts.jsonl").write_text(text)
    assert cost(tmp_path) is None
    assert cost(tmp_path / "nowhere") is None


# Curves


def test_metrics_that_are_damaged(tmp_path: Path) -> None:
    """Half a line, a line of another stage and one of other things are passed over; what is not finite is a gap."""
    good = [
        {"stage": "a", "i": i, "losses": {"x": v}, "norms": {}, "skipped": []} for i, v in enumerate((1.0, None, 3.0))
    ]
    lines = [*map(json.dumps, good), json.dumps({**good[0], "stage": "b"}), "[]", '{"stage": "a", "i": 3, "los']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    series, skipped = read_metrics(tmp_path / "metrics.jsonl", {"a": 10})
    assert series == {("losses", "x"): Series([10, 11, 12], [1.0, None, 3.0])} and skipped == {}
    drawn = [part.get("d", "") for part in panel("x", series["losses", "x"], [("a", 0, 20)], "losses").iter("path")]
    assert len([d for d in drawn if d.endswith("Z")]) == 2


def test_many_ticks_are_few_points() -> None:
    """Means, with the least and most of what they stand for: a peak is not lost."""
    y = [1.0] * 100_000
    y[777] = 50.0
    buckets = thin(Series([*range(100_000)], [*y]), 100)
    assert len(buckets) == 100 and max(hi or 0 for *_, hi in buckets) == 50.0
    assert sum(mean or 0 for _, mean, *_ in buckets) / 100 == pytest.approx(sum(y) / 100_000)


@pytest.mark.parametrize(
    ("values", "log"), [((0.001, 10.0), True), ((1.0, 2.0), False), ((-1.0, 100.0), False), ((0.0, 5.0), False)]
)
def test_scales(values: tuple[float, float], log: bool) -> None:
    """Logarithmic where values are positive and far apart; round numbers that lie within, upwards on the page."""
    axis = Axis.of(values, 100, 0)
    assert axis.log == log and 0 <= axis(values[1]) < axis(values[0]) <= 100
    assert 2 <= len(axis.ticks()) <= 9 and all(-1e-6 <= axis(tick) <= 100 + 1e-6 for tick in axis.ticks())


@pytest.mark.parametrize("value", [0.0, 1e-300, -3.5, 7e37])
def test_a_curve_of_one_value(value: float) -> None:
    """However large or small."""
    assert [*panel("x", Series([1], [value]), [("a", 0, 1)], "losses").iter("path")]


def test_a_curve_without_values() -> None:
    figure = panel("x", Series([1], [None]), [("a", 0, 1)], "losses")
    assert "".join(figure.itertext()).endswith("No value was finite.")
