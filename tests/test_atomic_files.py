"""Files appear whole or not at all, whatever stands at or beside their place."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from encoders import small_encoder
from sparse_mixer import SparseMixer, _native
from sparse_mixer.training import state

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs permissions, links and pipes")
ENDINGS = [".safetensors", ".npz", ".weights.h5", ".state"]


def save(path: Path, encoder: SparseMixer | None = None) -> None:
    if path.name.endswith(".state"):
        state.save(path, {}, {})
    else:
        (encoder or small_encoder()).save(path)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def private() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.parametrize("ending", ENDINGS)
def test_saving_removes_what_killed_saves_left_and_nothing_else(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"m{ending}"
    file = _native.AtomicFile(path)
    leftover = Path(file.temporary)
    file.discard()
    leftover.write_bytes(b"of a killed process")
    users = [f".{path.name}.backup.tmp", f".{path.name}.1-2-3.tmp", f"{path.name}.tmp", f"{leftover.name}.old"]
    for name in users:
        (tmp_path / name).write_text("precious")
    save(path)
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, *users])
    assert all((tmp_path / name).read_text() == "precious" for name in users)


@pytest.mark.parametrize("ending", ENDINGS)
def test_saving_keeps_permissions_and_links(tmp_path: Path, ending: str) -> None:
    real, link, dangling = tmp_path / f"real{ending}", tmp_path / f"link{ending}", tmp_path / f"dangling{ending}"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real.name)
    made = tmp_path / "inner" / f"made{ending}"
    made.parent.mkdir()
    dangling.symlink_to(made.relative_to(tmp_path))
    save(link)
    save(dangling)
    assert link.is_symlink()
    assert real.stat().st_size > 3
    assert mode(real) == 0o640
    assert dangling.is_symlink()
    assert made.stat().st_size == real.stat().st_size
    assert os.listdir(made.parent) == [made.name]


def test_a_private_file_is_never_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    path.chmod(0o600)
    file = _native.AtomicFile(path)
    assert mode(file.temporary) & 0o077 == 0
    file.commit()
    assert mode(path) == 0o600


@pytest.mark.usefixtures("private")
def test_a_new_file_follows_the_users_mask(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    file = _native.AtomicFile(path)
    assert mode(file.temporary) == 0o600
    file.commit()
    assert mode(path) == 0o600


@pytest.mark.parametrize("ending", ENDINGS)
def test_pipes_and_devices_are_refused(tmp_path: Path, ending: str) -> None:
    pipe, device = tmp_path / f"pipe{ending}", tmp_path / f"device{ending}"
    os.mkfifo(pipe)
    device.symlink_to(os.devnull)
    for path in (pipe, device):
        with pytest.raises(OSError, match=r"is a pipe, socket or device.*name of a file"):
            save(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(device.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == sorted([pipe.name, device.name])


@pytest.mark.parametrize("ending", ENDINGS)
def test_names_may_be_as_long_as_the_system_allows(tmp_path: Path, ending: str) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    path = tmp_path / ("n" * (longest - len(ending)) + ending)
    save(path)
    assert os.listdir(tmp_path) == [path.name]
    save(path)
    assert os.listdir(tmp_path) == [path.name]
    if ending != ".state":
        assert small_encoder(seed=9).load_weights(path).complete
