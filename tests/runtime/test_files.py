from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from helpers.machines import mark_of, names_in

from xopt.runtime.errors import BadInput
from xopt.runtime.files import (
    check_writable,
    new_file,
    new_folder,
    scratch_beside,
    write_text,
)
from xopt.runtime.owners import HOST

DEAD_PID = 2**22 + 1  # above the kernel's largest


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "a") as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a") as temporary:
        (temporary / "file").write_text("half")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "a") as temporary:
        (temporary / "file").write_text("whole")
    assert (tmp_path / "a" / "file").read_text() == "whole"


def test_a_folder_is_replaced_only_on_request_and_only_by_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("old")
    with pytest.raises(BadInput, match="exists already"), new_folder(tmp_path / "a"):
        raise AssertionError("not reached")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a", replace=True):
        _ = 1 / 0
    assert (tmp_path / "a" / "file").read_text() == "old"
    with new_folder(tmp_path / "a", replace=True) as temporary:
        (temporary / "file").write_text("new")
    assert (tmp_path / "a" / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with new_folder(tmp_path / "link", replace=True) as temporary:
        (temporary / "file").write_text("newer")
    assert (tmp_path / "a" / "file").read_text() == "newer"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_symlink() or p.name == "a") == [
        "a",
        "link",
    ]


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / f".a.new-{HOST}-{DEAD_PID}").mkdir()
    old = tmp_path / f".b.old-{HOST}-{DEAD_PID}"
    old.mkdir()
    (old / "file").write_text("rescued")
    with new_folder(tmp_path / "a"):
        pass
    with new_folder(tmp_path / "b", replace=True):
        assert (tmp_path / "b" / "file").read_text() == "rescued"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        write_text(tmp_path / "file" / "below", "text")


def test_what_another_machine_or_another_name_left_is_not_swept(tmp_path: Path) -> None:
    for name in (
        f".a.new-elsewhere-{DEAD_PID}",
        f".a.new-{DEAD_PID}",
        f".ab.new-{HOST}-{DEAD_PID}",
    ):
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "a"):
        pass
    assert len(list(tmp_path.iterdir())) == 4
    (tmp_path / f".xyz.new-{HOST}-{DEAD_PID}").mkdir()
    with new_folder(tmp_path / "[x]yz"):  # no pattern
        pass
    assert (tmp_path / f".xyz.new-{HOST}-{DEAD_PID}").exists()


def test_a_folder_that_another_process_made_meanwhile_is_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match="a: exists already"),
        new_folder(tmp_path / "a") as temporary,
    ):
        (temporary / "file").write_text("ours")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "notes.txt").write_text("precious")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "notes.txt").read_text() == "precious"
    (tmp_path / "b").touch()
    with pytest.raises(BadInput, match="b: exists already"), new_folder(tmp_path / "b"):
        raise AssertionError("not reached")


def test_whether_a_place_can_be_written_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_writable(tmp_path)
    check_writable(tmp_path / "new" / "file")
    with pytest.raises(BadInput, match="cannot be written"):
        check_writable(tmp_path / "file" / "below")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_container_that_was_restarted_begins_again(tmp_path: Path) -> None:
    for mark in (mark_of(start="1"), f"{HOST}-{os.getpid()}"):  # of now, and of versions before
        leftover = tmp_path / f".a.new-{mark}"
        leftover.mkdir()
        (leftover / "weights").touch()
        check_writable(tmp_path / "a")
        assert not leftover.exists()
        for begin in (new_folder, scratch_beside, new_file):
            leftover.mkdir()
            with begin(tmp_path / "a") as temporary:
                assert temporary.exists()
                assert not leftover.exists()
            if begin is not scratch_beside:
                assert names_in(tmp_path) == ["a"]
                shutil.rmtree(tmp_path / "a", ignore_errors=True)
                (tmp_path / "a").unlink(missing_ok=True)
    assert names_in(tmp_path) == []


def test_what_is_removed_as_it_is_written_is_one_clear_error(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match="a: another process removed what was being written"),
        new_folder(tmp_path / "a") as folder,
    ):
        shutil.rmtree(folder)
        (folder / "weights").touch()
    with (
        pytest.raises(BadInput, match="b: another process removed what was being written"),
        new_file(tmp_path / "b") as file,
    ):
        file.unlink()
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "c"):
        (tmp_path / "another").read_bytes()
    assert names_in(tmp_path) == []


def test_two_that_replace_one_folder_leave_one_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a", replace=True) as first:
        (first / "file").write_text("first")
        with new_folder(tmp_path / "a", replace=True) as second:
            (second / "file").write_text("second")
        assert (tmp_path / "a" / "file").read_text() == "second"
    assert (tmp_path / "a" / "file").read_text() == "first"
    assert names_in(tmp_path) == ["a"]
