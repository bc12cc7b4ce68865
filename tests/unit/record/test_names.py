"""Names and paths in records stay within their folder, and every label has a readable one."""

from __future__ import annotations

import pytest

from bench.record.names import MAX_NAME_BYTES, file_name, file_names, inner_path


@pytest.mark.parametrize(
    "text", ["", ".", "..", "../x", "/x", "a/b", "a\\b", ".hidden", "a\nb", "a b", "x" * 300]
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        file_name(text)


@pytest.mark.parametrize("text", ["../x", "/etc/passwd", "a/../../b", "C:\\x", "a\\b", "x\x1b[2J", "file:x"])
def test_path_out_of_the_run_folder_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a path within"):
        inner_path(text)


def test_paths_within_the_run_folder_pass() -> None:
    assert [inner_path(text) for text in ("", "logs/a-0.log")] == ["", "logs/a-0.log"]


def test_plain_labels_keep_their_names() -> None:
    assert file_names(["native, EMA off", "slow (A)_size-320x320"]) == {
        "native, EMA off": "native-ema-off",
        "slow (A)_size-320x320": "slow-a-size-320x320",
    }


def test_labels_of_any_script_are_readable() -> None:
    assert file_names(["快速", "慢", "Быстрый", "größer"]) == {
        "快速": "快速", "慢": "慢", "Быстрый": "быстрый", "größer": "größer"
    }  # fmt: skip


def test_every_label_has_a_name_of_its_own() -> None:
    texts = ["a+b", "a-b", "A b", "🚀", "🐌", "", "...", "x" * 500, "x" * 501, "ﬁ", "fi", "快" * 300]
    names = file_names(texts)
    assert len(set(names.values())) == len(texts)
    for name in names.values():
        assert file_name(name) == name
        assert len(name.encode()) <= MAX_NAME_BYTES


def test_names_do_not_depend_on_later_labels() -> None:
    assert file_names(["a-b", "a+b"])["a-b"] == file_names(["a-b"])["a-b"]
