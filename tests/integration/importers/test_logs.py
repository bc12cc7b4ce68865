"""Every log format: what a tool wrote is read back to the last value."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.importers import known_formats, to_json
from tests.conftest import ROOT
from tests.helpers.logwriters import (
    START,
    WRITERS,
    Line,
    only,
    read,
    run,
    text,
    wall_seconds,
)

# Values that every format prints exactly with the decimals it uses.
exact = st.integers(1, 999).map(lambda n: n / 1000)
quarter = st.integers(0, 400).map(lambda n: n / 100)


@st.composite
def logs(draw: st.DrawFn, max_lines: int = 30) -> list[Line]:
    """Lines of one run: iterations grow by an interval, the clock by what they take."""
    interval = draw(st.integers(1, 60))
    count = draw(st.integers(2, max_lines))
    ms = draw(st.integers(200, 900))
    when = START + timedelta(milliseconds=draw(st.integers(0, 999)))
    keys = draw(
        st.lists(
            st.sampled_from(["loss_cls", "loss_bbox", "loss_ins", "rpn.loss", "loss"]),
            unique=True,
            min_size=1,
        )
    )
    lines = []
    for n in range(1, count + 1):
        when += timedelta(milliseconds=ms * interval + draw(st.integers(0, 50)))
        lines.append(
            Line(
                iteration=n * interval,
                when=when,
                s_per_iter=draw(exact),
                data_s=draw(exact),
                lr=draw(exact),
                memory_mb=draw(st.integers(0, 80_000)),
                images_per_s=draw(quarter),
                eta_s=draw(st.integers(0, 10_000_000)),
                losses={key: draw(quarter) for key in keys},
            )
        )
    return lines


def test_every_known_format_is_tested() -> None:
    assert {*WRITERS, "ultralytics"} == set(known_formats())


@pytest.mark.parametrize("name", WRITERS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(lines=logs())
def test_what_tool_wrote_is_read_back_to_last_value(name: str, lines: list[Line]) -> None:
    writer = WRITERS[name]
    result = read(text(name, lines))
    section = only(result)
    offset = writer.first_iteration - 1
    assert dict(result.train_lines) == {name: len(lines)}
    assert (section.format, section.lines) == (name, len(lines))
    assert result.log.broken_lines == 0
    for line, point in zip(lines, section.curve, strict=True):
        if name != "mmdet2-json":  # the length of an epoch is not printed there
            assert point.iteration == line.iteration + offset
        for value in writer.values:
            assert getattr(point.fields, value) == pytest.approx(getattr(line, value), rel=1e-9), value
        for key, loss in line.losses.items():
            assert point.fields.losses[writer.prefix + key] == pytest.approx(loss, rel=1e-9)
    clock = section.wall_clock
    if not writer.stamp:
        assert clock is None
        assert "prints no time" in section.no_wall_clock
    elif wall_seconds(name, lines[0], lines[-1]) > 0:
        assert clock is not None
        assert clock.steps == lines[-1].iteration - lines[0].iteration
        assert clock.seconds == wall_seconds(name, lines[0], lines[-1])
        if writer.stamp == "ms":
            exact_ms = (lines[-1].when - lines[0].when) / timedelta(milliseconds=1)
            assert clock.exact_seconds * 1000 == pytest.approx(exact_ms, abs=1)


@pytest.mark.parametrize("name", WRITERS)
def test_the_named_format_reads_the_same_as_auto(name: str) -> None:
    data = text(name, run(5))
    assert to_json(read(data, name))["log"] == to_json(read(data))["log"]


#: One line per spelling: the format, a tab, a training line as some version of its tool writes it; `#`: its source.
SPELLINGS = [
    line
    for line in (ROOT / "tests" / "helpers" / "spellings.txt").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_spellings_of_older_and_newer_versions_are_read(spelling: str) -> None:
    name, _, line = spelling.partition("\t")
    result = read(line + "\n")
    assert dict(result.train_lines) == {name: 1}
    assert result.log.broken_lines == 0
    (point,) = only(result).curve
    assert point.fields.losses
    assert (point.fields.s_per_iter is None) == all(
        key not in line for key in ("time: ", "batch_cost: ", '"time": ')
    )


def test_curve_of_long_log_is_thinned_and_says_so() -> None:
    lines = run(9000, interval=1)
    many = only(read(text("mmengine", lines)))
    assert many.lines == 9000
    assert many.curve_stride == 8
    assert [point.iteration for point in many.curve] == list(range(1, 9001, 8))


def test_log_of_many_restarts_does_not_fill_memory_with_curves() -> None:
    data = "".join(text("mmdet2", run(100, start=START + timedelta(hours=n))) for n in range(30))
    sections = read(data).log.sections
    assert len(sections) == 30
    assert all(section.lines == 100 for section in sections)
    assert [len(section.curve) for section in sections] == [100] * 10 + [50] * 20
    assert all(section.curve_stride == 2 for section in sections[10:])
