"""Reading a repository: what is an entry, a version, a model file; and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import config_text, paths, repository
from protos.model_config import ConfigError, ModelConfig
from protos.repository import Entry, NotFound, RepositoryError


def make(root: Path, *files: str, name: str = "m", config: str | None = None) -> Path:
    """An entry that holds `files`; returns its folder."""
    entry = root / name
    entry.mkdir(parents=True, exist_ok=True)
    for file in files:
        (entry / file).parent.mkdir(parents=True, exist_ok=True)
        (entry / file).write_text(file)
    if config is not None:
        (entry / "config.pbtxt").write_text(config)
    return entry


def test_entries_are_the_visible_folders_in_order(tmp_path: Path) -> None:
    for name in ("b", "a.onnx", ".staging-1", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.md").write_text("")
    assert repository.names(tmp_path) == ("a.onnx", "b")


def test_a_missing_repository_is_told(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="is no model repository: No such file or directory"):
        repository.names(tmp_path / "none")


def test_versions_are_positive_integers_without_leading_zeros(tmp_path: Path) -> None:
    folders = ["10", "2", "1", "0", "03", "-4", "+5", "1.0", "v6", "7x", "٣", "9223372036854775808", ".8", "1e3"]
    for folder in folders:
        (tmp_path / "m" / folder).mkdir(parents=True)
    (tmp_path / "m" / "11").write_text("a file, no version")
    assert repository.read(tmp_path, "m").versions == (1, 2, 10)


@pytest.mark.parametrize(
    ("file", "backend", "platform"),
    [
        ("model.onnx", "onnxruntime", "onnxruntime_onnx"),
        ("model.onnx/model.onnx", "onnxruntime", "onnxruntime_onnx"),
        ("model.pt", "pytorch", "pytorch_libtorch"),
        ("model.pt2", "pytorch", "torch_aoti"),
        ("model.py", "python", ""),
        ("model.plan", "tensorrt", "tensorrt_plan"),
        ("model.xml", "openvino", ""),
        ("model.fake", "fake", ""),
        ("weights.bin", "", ""),
    ],
)
def test_backend_and_platform_follow_from_the_file_name(tmp_path: Path, file: str, backend: str, platform: str) -> None:
    make(tmp_path, f"1/{file}")
    config = repository.read(tmp_path, "m").config
    assert (config.name, config.backend, config.platform) == ("m", backend, platform)


def test_what_the_file_says_goes_before_the_file_name(tmp_path: Path) -> None:
    make(tmp_path, "1/model.onnx", config='backend: "python" max_batch_size: 3')
    config = repository.read(tmp_path, "m").config
    assert (config.name, config.backend, config.platform, config.max_batch_size) == ("m", "python", "", 3)


def test_the_name_in_the_file_must_be_the_folders(tmp_path: Path) -> None:
    make(tmp_path, "1/model.onnx", config='name: "other"')
    with pytest.raises(ConfigError, match=r"m/config.pbtxt: name: unexpected directory name 'm' for model 'other'"):
        repository.read(tmp_path, "m")


def test_an_entry_without_versions_can_be_read(tmp_path: Path) -> None:
    make(tmp_path)
    assert repository.read(tmp_path, "m") == Entry("m", tmp_path / "m", ModelConfig("m"), ())


def test_unknown_entries_are_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("none", "file"):
        with pytest.raises(NotFound, match=f"no entry '{name}' in the repository"):
            repository.read(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../m", "a/b", "/etc", "a\\b", ".hidden", "a\nb", "a\x00b", "x" * 256, "\ud800", "ä" * 128]
)
def test_names_that_are_no_plain_folder_name_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match=r"^entry name ") as caught:
        repository.read(tmp_path, name)
    assert str(caught.value).isprintable()


@given(st.text(max_size=300))
def test_a_name_that_passes_stays_in_its_folder(name: str) -> None:
    if not paths.name_problem(name):
        assert Path("/root", name).parent == Path("/root")
        assert len(os.fsencode(name)) <= 255
    if not paths.relative_problem(name):
        assert os.path.normpath(f"/repository/{name}").startswith("/repository/")


def test_errors_of_reading_hold_no_path_of_the_host(tmp_path: Path) -> None:
    entry = make(tmp_path, "1/model.onnx", config="nonsense")
    with pytest.raises(ConfigError) as caught:
        repository.read(tmp_path, "m")
    assert str(tmp_path) not in str(caught.value)
    (entry / "config.pbtxt").unlink()
    (entry / "1" / "link").symlink_to("/etc/passwd")
    with pytest.raises(RepositoryError) as refused:
        repository.model_file(repository.read(tmp_path, "m"), 1)
    assert str(refused.value) == "m/1/link: is a link that leads out of the entry"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xff\xfe", r"m/config.pbtxt: byte 0 is not valid UTF-8"),
        (b"#" * (config_text.MAX_BYTES + 1), "bytes of configuration, at most"),
        (b"max_batch: 3", r"m/config.pbtxt:1: ModelConfig has no field 'max_batch'"),
    ],
    ids=["utf-8", "huge", "field"],
)
def test_a_bad_configuration_file_is_told(tmp_path: Path, content: bytes, expected: str) -> None:
    (make(tmp_path) / "config.pbtxt").write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        repository.read(tmp_path, "m")


def test_a_configuration_that_is_a_pipe_a_folder_or_a_link_out_is_refused(tmp_path: Path) -> None:
    config = make(tmp_path) / "config.pbtxt"
    os.mkfifo(config)
    with pytest.raises(RepositoryError, match=r"m/config.pbtxt: is no regular file"):
        repository.read(tmp_path, "m")
    config.unlink()
    config.mkdir()
    with pytest.raises(RepositoryError, match=r"m/config.pbtxt: is no regular file"):
        repository.read(tmp_path, "m")
    config.rmdir()
    config.symlink_to("/dev/zero")
    with pytest.raises(RepositoryError, match=r"m/config.pbtxt: is a link that leads out of the entry"):
        repository.read(tmp_path, "m")


def test_the_model_file_is_the_backends_or_the_one_that_is_named(tmp_path: Path) -> None:
    entry = make(tmp_path, "1/model.onnx", "1/best.onnx")
    assert repository.model_file(repository.read(tmp_path, "m"), 1) == entry / "1" / "model.onnx"
    (entry / "config.pbtxt").write_text('default_model_filename: "best.onnx" backend: "onnxruntime"')
    assert repository.model_file(repository.read(tmp_path, "m"), 1) == entry / "1" / "best.onnx"


def test_a_model_may_be_a_folder_with_external_data(tmp_path: Path) -> None:
    entry = make(tmp_path, "1/model.onnx/model.onnx", "1/model.onnx/weights.bin")
    assert repository.model_file(repository.read(tmp_path, "m"), 1) == entry / "1" / "model.onnx"


def test_a_link_inside_the_entry_is_followed(tmp_path: Path) -> None:
    entry = make(tmp_path, "1/model.onnx", "2/other")
    (entry / "2" / "model.onnx").symlink_to("../1/model.onnx")
    assert repository.model_file(repository.read(tmp_path, "m"), 2).read_text() == "1/model.onnx"


@pytest.mark.parametrize("inside", ["1/model.onnx", "1/model.onnx/weights.bin", "1/extra"])
@pytest.mark.parametrize("kind", ["fifo", "device", "out", "nowhere", "loop"])
def test_anything_but_regular_files_is_refused(tmp_path: Path, inside: str, kind: str) -> None:
    entry = make(tmp_path, *([] if inside.startswith("1/model.onnx") else ["1/model.onnx"]))
    path = entry / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": "/dev/null", "out": "/etc/hostname", "nowhere": "gone", "loop": path.name}[kind])
    with pytest.raises(RepositoryError, match=f"^m/{inside}: is "):
        repository.model_file(repository.read(tmp_path, "m"), 1)


def test_a_missing_model_file_is_told_with_what_is_there(tmp_path: Path) -> None:
    make(tmp_path, "1/model.onnx.bak", config='backend: "onnxruntime"')
    entry = repository.read(tmp_path, "m")
    with pytest.raises(RepositoryError, match=r"^m/1: has no 'model.onnx'; there are model.onnx.bak$"):
        repository.model_file(entry, 1)
    with pytest.raises(RepositoryError, match=r"^m: has no version 2; there are \[1\]$"):
        repository.model_file(entry, 2)


def test_an_entry_of_no_known_kind_is_told(tmp_path: Path) -> None:
    make(tmp_path, "1/weights.bin")
    with pytest.raises(RepositoryError, match=r"^m/1: no backend is named and no model file is there; known: "):
        repository.model_file(repository.read(tmp_path, "m"), 1)
