"""Prepared galleries: codes that bound their rows, directories that are whole or not there, what has changed since."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gallery_cases import WRITERS, read, rows_of, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_gallery import arrow_table, shards

import graceful_fast as gf

FIXED = [name for name in WRITERS if name not in ("npz-compressed", "hdf5-chunked", "parquet", "parquet-list")]


def codes_of(
    gallery: gf.Gallery, rows: int = 3, start: int = 0, stop: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    assert gallery.codes is not None
    blocks = [(first, codes.clone(), facts.clone()) for first, codes, facts in gallery.codes.blocks(rows, start, stop)]
    assert [first for first, _, _ in blocks] == list(range(start, len(gallery) if stop is None else stop, rows))
    return torch.cat([codes for _, codes, _ in blocks]), torch.cat([facts for _, _, facts in blocks])


@pytest.mark.parametrize("name", WRITERS)
def test_a_prepared_gallery_has_the_rows_and_codes_that_bound_them(name: str, tmp_path: Path) -> None:
    rows = rows_of(WRITERS[name][1].split()[0], rows=30, dim=3)
    path = written(tmp_path, name, rows)
    prepared = gf.Gallery.open(path).prepare(tmp_path / "prepared", model="resnet50", block_bytes=7 * 12)
    gallery = gf.Gallery.open(tmp_path / "prepared")
    for opened in (prepared, gallery):
        assert (len(opened), opened.dim, opened.dtype, opened.model) == (30, 3, rows.dtype, "resnet50")
        assert torch.equal(read(opened), rows)
        assert torch.equal(opened.take([0, 7, 29]), rows[[0, 7, 29]])
    assert gallery.codes is not None
    assert gallery.codes.stride == 16
    codes, facts = codes_of(gallery, 7)
    assert codes.dtype == torch.int8
    assert facts.dtype == torch.float32
    assert not codes[:, 3:].any()
    scale, residual, norm = facts.double().T
    exact = rows.double()
    assert ((exact - scale[:, None] * codes[:, :3]).norm(dim=1) <= residual).all()
    assert (exact.norm(dim=1) <= norm).all()
    assert (residual <= scale * 3**0.5).all()
    part, _ = codes_of(gallery, 4, 5, 21)
    assert torch.equal(part, codes[5:21])
    assert (tmp_path / "prepared" / f"originals.{'u8' if 'u8' in name else 'f32'}").exists() == (name not in FIXED)
    gallery.verify()


@pytest.mark.parametrize("dtype", ["f4", "f2", "bf16", "f8", "i1", "u1"])
def test_arrays_of_every_dtype_are_kept_beside_their_codes(dtype: str, tmp_path: Path) -> None:
    rows = rows_of(dtype, 40, 20)
    gallery = gf.Gallery.open(rows).prepare(tmp_path / "prepared", block_bytes=1000)
    assert torch.equal(read(gallery), rows)
    assert gallery.codes is not None
    assert gallery.codes.stride == 32
    assert gallery.model is None


def test_a_stream_can_be_prepared_in_its_one_pass(tmp_path: Path) -> None:
    rows = rows_of("f4", 40)
    gallery = gf.Gallery.open(arrow_table(rows, 7).to_reader(), key="embedding").prepare(
        tmp_path / "p", block_bytes=100
    )
    assert len(gallery) == 40
    assert torch.equal(read(gallery), rows)


def test_codes_are_those_of_the_op_whatever_the_blocks(tmp_path: Path) -> None:
    from graceful_fast import _ops

    rows = torch.randn(100, 40)
    expected = _ops.scan_quantize(rows)[:2]
    for number, block_bytes in enumerate((1, 1000, 1 << 20)):
        gallery = gf.Gallery.open(rows).prepare(tmp_path / str(number), block_bytes=block_bytes)
        for got, wanted in zip(codes_of(gallery, 13), expected, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("value", "what"), [(float("nan"), "got NaN or infinity"), (float("inf"), "got NaN"), (1e160, "norm")]
)
def test_a_row_without_codes_is_refused_with_its_number_and_nothing_is_left(
    value: float, what: str, tmp_path: Path
) -> None:
    rows = rows_of("f8", 50)
    rows[33, 1] = value
    with pytest.raises(ValueError, match=f"gallery: row 33: expected .*{what}"):
        gf.Gallery.open(rows).prepare(tmp_path / "prepared", block_bytes=7 * 12)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    gallery = gf.Gallery.open(rows_of("f4"))
    (tmp_path / "empty").mkdir()
    gallery.prepare(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    for name in ("empty", "full", "full/thesis.txt"):
        with pytest.raises(FileExistsError, match="expected a new or empty directory"):
            gallery.prepare(tmp_path / name)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    gallery = gf.Gallery.open(rows_of("f4"))
    with pytest.raises(ValueError, match="scan: expected 'int8', got 'float32'"):
        gallery.prepare(tmp_path / "p", "float32")
    with pytest.raises(ValueError, match="block_bytes: expected at least 1"):
        gallery.prepare(tmp_path / "p", block_bytes=0)
    with pytest.raises(ValueError, match=r"dim of at most 131072 for int8 codes, got 131073"):
        gf.Gallery.open(torch.zeros(1, 131073)).prepare(tmp_path / "p")
    with pytest.raises(ValueError, match="expected a prepared gallery"):
        gallery.verify()


def test_progress_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gallery = gf.Gallery.open(rows_of("f4", 10))
    told: list[Any] = []
    gallery.prepare(tmp_path / "a", progress=lambda done, total: told.append((done, total)), block_bytes=4 * 12)
    assert told == [(4, 10), (8, 10), (10, 10)]
    gallery.prepare(tmp_path / "b", progress=True, block_bytes=5 * 12)
    lines = capsys.readouterr().err.splitlines()  # one line kept where it is a terminal
    assert re.fullmatch(r"prepared 10 of 10 rows \(100 %\), [\d,]+ rows/s", lines[-1])


def test_another_model_or_dim_is_refused(tmp_path: Path) -> None:
    gf.Gallery.open(rows_of("f4")).prepare(tmp_path / "p", model="resnet50")
    gf.Gallery.open(tmp_path / "p", model="resnet50", dim=3, dtype="float32")
    with pytest.raises(ValueError, match=r"/p: expected a gallery of model 'vit', got one of 'resnet50'"):
        gf.Gallery.open(tmp_path / "p", model="vit")
    with pytest.raises(ValueError, match="/p: expected dim 4, got 3"):
        gf.Gallery.open(tmp_path / "p", dim=4)


def test_originals_and_codes_move_together(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    paths, rows = shards(tmp_path / "here")
    gf.Gallery.open(paths).prepare(tmp_path / "here" / "p")
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(read(gf.Gallery.open(tmp_path / "there" / "p")), rows)
    (tmp_path / "there" / "p").rename(tmp_path / "p")
    with pytest.raises(FileNotFoundError, match=r"/part-0.npy: no such file"):
        gf.Gallery.open(tmp_path / "p")


def test_paths_of_originals_may_be_edited_in_the_manifest(tmp_path: Path) -> None:
    path = written(tmp_path, "npy", rows_of("f4"))
    gf.Gallery.open(path).prepare(tmp_path / "p")
    path.rename(tmp_path / "moved.npy")
    manifest = tmp_path / "p" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("gallery.npy", "moved.npy"))
    assert torch.equal(read(gf.Gallery.open(tmp_path / "p")), rows_of("f4"))


def test_originals_of_another_time_are_compared_by_checksum(tmp_path: Path) -> None:
    paths, rows = shards(tmp_path)
    gf.Gallery.open(paths).prepare(tmp_path / "p")
    os.utime(paths[3], ns=(0, 0))
    assert torch.equal(read(gf.Gallery.open(tmp_path / "p")), rows)
    values = np.load(paths[3])
    values[1, 1] += 1
    np.save(paths[3], values)
    with pytest.raises(
        ValueError, match=r"part-3.npy: changed since .*/p was prepared: expected rows of SHA-256 \w{64}, got"
    ):
        gf.Gallery.open(tmp_path / "p")
    np.save(paths[3], values[:1])
    with pytest.raises(ValueError, match=r"part-3.npy: changed since it was prepared: expected 164 bytes, got 140"):
        gf.Gallery.open(tmp_path / "p")


@pytest.mark.parametrize("name", ["codes.i8", "facts.f32", "originals.f32"])
def test_damage_to_a_written_file_is_found(name: str, tmp_path: Path) -> None:
    gallery = gf.Gallery.open(rows_of("f4")).prepare(tmp_path / "p")
    path = tmp_path / "p" / name
    content, state = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(OSError, match=f"{name}: changed since it was opened"):
        gallery.check_unchanged()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(ValueError, match=f"{name}: changed since .* expected rows of SHA-256"):
        gf.Gallery.open(tmp_path / "p").verify()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{name}: changed since it was prepared: expected {len(content)} bytes"):
        gf.Gallery.open(tmp_path / "p")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
        gf.Gallery.open(tmp_path / "p")


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(-1, 255)), min_size=1, max_size=4))
def test_a_damaged_manifest_is_refused_or_means_the_same(changes: list[tuple[float, int]], tmp_path: Path) -> None:
    manifest = tmp_path / "p" / "manifest.json"
    if not manifest.exists():
        gf.Gallery.open(rows_of("f4")).prepare(tmp_path / "p")
        shutil.copy(manifest, tmp_path)
    content = bytearray((tmp_path / "manifest.json").read_bytes())
    for where, value in changes:
        at = int(where * (len(content) - 1))
        content[at:] = b"" if value < 0 else bytes([value]) + content[at + 1 :]
    manifest.write_bytes(content)
    try:
        rows = read(gf.Gallery.open(tmp_path / "p"))
    except (ValueError, OSError) as error:
        message = str(error)
    else:
        assert torch.equal(rows, rows_of("f4"))
        return
    assert message.startswith(str(tmp_path / "p"))


def test_a_manifest_of_another_version_or_kind_is_refused(tmp_path: Path) -> None:
    gf.Gallery.open(rows_of("f4")).prepare(tmp_path / "p")
    manifest = tmp_path / "p" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "version": 2}))
    with pytest.raises(ValueError, match=r"manifest.json: expected 'graceful_fast.gallery' of version 1, got .* of 2"):
        gf.Gallery.open(tmp_path / "p")
    manifest.write_text(json.dumps({**content, "rows": 6}))
    with pytest.raises(ValueError, match=r"manifest.json: damaged: expected checksum"):
        gf.Gallery.open(tmp_path / "p")
    for text in ("{}", "[]", "3", ""):
        manifest.write_text(text)
        with pytest.raises(ValueError, match=r"manifest.json: expected the manifest of a prepared gallery, got"):
            gf.Gallery.open(tmp_path / "p")


SLOW = """
import sys, time, numpy as np, graceful_fast as gf

def tell(done, total):
    print(done, flush=True)
    time.sleep(0.05)

gf.Gallery.open(sys.argv[1]).prepare(sys.argv[2], progress=tell, block_bytes=12)
"""


def test_a_killed_preparation_leaves_no_gallery_and_the_next_one_starts_anew(tmp_path: Path) -> None:
    path = written(tmp_path, "npy", rows_of("f4", 2000))
    process = subprocess.Popen([sys.executable, "-c", SLOW, path, tmp_path / "p"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline()
    gallery = gf.Gallery.open(path)
    with pytest.raises(OSError, match=r"expected to prepare it alone, got .* locked by another process"):
        gallery.prepare(tmp_path / "p")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "p").exists()
    assert (tmp_path / "p.partial" / "codes.i8").exists()
    with pytest.raises(ValueError, match="got none"):
        gf.Gallery.open(tmp_path / "p.partial")
    (tmp_path / "p.partial" / "originals.f32").write_text("of another gallery")
    gallery.prepare(tmp_path / "p").verify()
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["codes.i8", "facts.f32", "manifest.json"]
    assert not (tmp_path / "p.partial").exists()


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "npy", rows_of("f4", 10))
    with pytest.raises(OSError, match=r"gallery.npy: changed since it was opened"):
        gf.Gallery.open(path).prepare(tmp_path / "p", progress=lambda *_: os.utime(path, (time.time(), 1)))
    assert not (tmp_path / "p").exists()
