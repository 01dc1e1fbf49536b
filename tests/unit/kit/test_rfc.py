"""Every requirement is held by a test, or it is said why not."""

from tests.kit.rfc import all_rows, marks, problems, row_holders


def test_no_gap_is_without_reason() -> None:
    assert problems() == []


def test_marks_and_rows_are_found() -> None:
    assert ("7296", "2.8.1") in marks()
    assert len(all_rows()) == 99
    assert "flows/test_streams.py" in row_holders()["R2"][0]
