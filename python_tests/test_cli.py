"""The commands compare, search and prepare: what they print and write, and one line with exit code 2 for bad input."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import graceful_fast as gf
from graceful_fast import cli, knn

OLD = np.array([[3, 1, 0], [2, 1, 0], [0, 1, 2], [0, 5, 1], [1, 0, 0]], np.float32)
NEW = np.array([[1.5, 0, 2], [0, 1, 0], [0, 1, 2], [4, 0, 1], [1, 0, 0]], np.float32)
TARGET = np.array([0, 1, 2, 1, 2])


class Result(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line in a folder that holds the files of a small update."""
    monkeypatch.chdir(tmp_path)
    for name, array in {"old": OLD, "new": NEW, "y": TARGET, "g": np.array(["x", "y", "x", "y", "x"])}.items():
        np.save(f"{name}.npy", array)
    Path("names.txt").write_text("cat\n[red]dog[/red]\n\x1b[31mowl\n")

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["graceful-fast", *arguments])
        code = cli.app()
        return Result(code, *capfd.readouterr())

    return run


COMPARE = ("compare", "--old", "old.npy", "--new", "new.npy", "--labels", "y.npy")


def test_compare_prints_headline_classes_and_samples(command: Command) -> None:
    result = command(*COMPARE, "--classes", "names.txt", "--groups", "g.npy")
    assert (result.code, result.err) == (0, "")
    assert "40.0\u00a0% of all answers broke" in result.out
    assert result.out.index("row 3") < result.out.index("row 0")
    assert "[red]dog[/red]" in result.out
    assert "\x1b" not in result.out
    assert "worst groups" in result.out


def test_compare_prints_the_worst_and_says_how_many_more(command: Command) -> None:
    np.save("many.npy", np.arange(15))
    np.save("wrong.npy", np.where(np.arange(15) < 12, 15, np.arange(15)))
    result = command("compare", "--old", "many.npy", "--new", "wrong.npy", "--labels", "many.npy")
    assert result.out.count("row ") == 10
    assert "… 2 more; --json and --html hold them" in result.out
    table = result.out.partition("worst classes")[2].partition("samples that broke")[0]
    assert table.count("100.0") == 5
    np.save("wrong.npy", np.where(np.arange(15) < 1, 15, np.arange(15)))
    out = command("compare", "--old", "many.npy", "--new", "wrong.npy", "--labels", "many.npy").out
    assert "more; --json" not in out
    assert out.partition("worst classes")[2].partition("samples that broke")[0].count("%") == 1


def test_json_dash_prints_json_and_nothing_else(command: Command) -> None:
    result = command(*COMPARE, "--json", "-")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["flips"]["negative"] == 2


def test_compare_writes_whole_files(command: Command) -> None:
    Path("inputs.txt").write_text("a\nb\nc\nd\ne\n")
    result = command(*COMPARE, "--inputs", "inputs.txt", "--topk", "2", "--json", "r.json", "--html", "r.html")
    assert result.code == 0
    assert json.loads(Path("r.json").read_text())["topk"] == 2
    assert Path("r.html").read_text().startswith("<!doctype html>")
    assert not list(Path().glob("*.partial"))


def refused(result: Result, *parts: str) -> None:
    """One line on stderr that holds the parts, nothing on stdout, exit code 2."""
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert result.err.startswith("graceful-fast: ")
    for part in parts:
        assert part in result.err


def as_bytes(array: np.ndarray) -> bytes:
    np.save("bytes.npy", array, allow_pickle=True)
    return Path("bytes.npy").read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "bad.npy: no such file"),
        (lambda: b"", "bad.npy: expected a .npy file, got an empty file"),
        (lambda: as_bytes(OLD)[:-1], "bad.npy: truncated"),
        (lambda: as_bytes(OLD)[:100], "bad.npy: truncated"),
        (lambda: as_bytes(OLD)[:7], "bad.npy: truncated"),
        (lambda: b"a,b\n1,2\n", "bad.npy: expected a .npy file, got another format"),
        (lambda: as_bytes(OLD).replace(b"{", b"["), "bad.npy: not a readable .npy file"),
        (lambda: as_bytes(np.array([{}], object)), "bad.npy: holds pickled Python objects"),
        (lambda: as_bytes(OLD).replace(b"(5, 3), }          ", b"(%d, 3), }" % 10**11), "bad.npy: truncated"),
        (
            lambda: as_bytes(OLD).replace(b"(5, 3), }" + 18 * b" ", b"(%d, 3), }" % (6 * 10**18)),
            "bad.npy: not a readable",
        ),
        (lambda: as_bytes(OLD[:0]), "bad.npy: expected at least one row, got shape (0, 3)"),
        (lambda: as_bytes(OLD[0, 0]), "bad.npy: expected at least one row, got shape ()"),
        (lambda: as_bytes(OLD[:4]), "--old bad.npy: expected as many rows as labels"),
        (lambda: as_bytes(OLD[None]), "--old bad.npy: expected as many rows as labels"),
        (lambda: as_bytes(OLD.astype(complex)), "complex128"),
        (lambda: as_bytes(OLD[:, 0]), "--old bad.npy: expected predicted classes as integers"),
        (
            lambda: as_bytes(np.where(OLD == 5, np.nan, OLD)),
            "--old bad.npy: expected scores without NaN, got one in row 3",
        ),
    ],
)
def test_a_bad_score_file_is_one_line_and_exit_code_2(
    command: Command, content: Callable[[], bytes] | None, reason: str
) -> None:
    if content is not None:
        Path("bad.npy").write_bytes(content())
    refused(command("compare", "--old", "bad.npy", "--new", "new.npy", "--labels", "y.npy"), reason)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--labels", "labels.npy"), "--labels labels.npy: expected classes below 3"),
        (("--classes", "two.txt"), "--classes two.txt: expected a name for each of 3 classes, got 2"),
        (("--classes", "latin.txt"), "latin.txt: expected UTF-8 text"),
        (("--classes", "empty.txt"), "empty.txt: expected one name a line"),
        (("--classes", "none.txt"), "none.txt: no such file"),
        (("--inputs", "two.txt"), "--inputs two.txt: expected 5 names as labels, got 2"),
        (("--groups", "archive.npz"), "archive.npz: expected a .npy file, got an archive"),
        (("--groups", "."), ".: expected a .npy file"),
        (("--groups", "labels.npy", "--topk", "2", "--old", "labels.npy"), "--topk: expected 1, as old is predicted"),
        (("--labels", "float.npy"), "--labels float.npy: expected integers, got dtype float64"),
        (("--topk", "4"), "--topk: expected at most the 3 classes"),
        (("--html", "nowhere/r.html"), "nowhere/r.html: cannot write"),
        (("--json", "nowhere/r.json"), "nowhere/r.json: cannot write"),
        (("--html", "r.html", "--json", "nowhere/r.json"), "nowhere/r.json: cannot write"),
        (("--html", "folder"), "folder: cannot write: Is a directory"),
        (("--json", "folder"), "folder: cannot write: Is a directory"),
        (("--json", ""), ".: cannot write: Is a directory"),
        (("--json", "r", "--html", "./r"), "--json r: expected another file than that of --html"),
        (("--html", "link"), "--html link: expected another file than that of --old"),
        (("--json", 300 * "r"), "cannot write: File name too long"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(command: Command, arguments: tuple[str, ...], reason: str) -> None:
    np.save("labels.npy", TARGET + 1)
    np.save("float.npy", TARGET.astype(float))
    Path("folder").mkdir()
    Path("link").symlink_to("old.npy")
    np.savez("archive.npz", TARGET)
    Path("two.txt").write_text("a\nb\n")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    Path("empty.txt").write_text("\n\n")
    before = {path: path.stat().st_size for path in Path().iterdir()}
    refused(command(*COMPARE, *arguments), reason)
    assert {path: path.stat().st_size for path in Path().iterdir()} == before


def test_usage_errors_have_exit_code_2(command: Command) -> None:
    result = command("compare", "--old", "old.npy")
    assert (result.code, result.out) == (2, "")
    assert "--new" in result.err


def test_numbers_and_strings_of_a_file_are_mapped_not_copied(command: Command) -> None:
    from graceful_fast._files import read_array

    assert isinstance(read_array(Path("old.npy")), np.memmap)
    assert read_array(Path("g.npy")).tolist() == ["x", "y", "x", "y", "x"]


def test_the_console_script_needs_no_torch_for_compare(command: Command) -> None:
    code = "import sys; sys.modules['torch'] = None; from graceful_fast.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *COMPARE], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "of all answers broke" in done.stdout


def test_search_writes_the_neighbours(command: Command) -> None:
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((50, 8)).astype(np.float32)
    np.save("gallery.npy", gallery)
    np.save("queries.npy", gallery[[7, 3]])
    result = command("search", "queries.npy", "gallery.npy", "-k", "4", "--output", "n.npz", "--json", "-")
    assert (result.code, result.err) == (0, "")
    facts = json.loads(result.out)
    assert (facts["queries"], facts["gallery"], facts["dimensions"], facts["k"]) == (2, 50, 8, 4)
    found = np.load("n.npz")
    assert found["indices"].shape == found["scores"].shape == (2, 4)
    assert found["indices"][:, 0].tolist() == [7, 3]
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    expected = np.sort(unit[[7, 3]] @ unit.T, axis=1)[:, ::-1][:, :4]
    np.testing.assert_allclose(found["scores"], expected, rtol=1e-5)
    assert not list(Path().glob("*.partial"))


def test_search_takes_any_gallery_and_every_way_gives_the_same_bytes(command: Command) -> None:
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((3000, 16)).astype(np.float32)
    np.save("queries.npy", gallery[:20] + 1)
    np.savez("named.npz", queries=gallery[:20] + 1, rows=gallery, others=gallery[:, :2])
    Path("shards").mkdir()
    for number, part in enumerate(np.split(gallery, 3)):
        np.save(f"shards/{number}.npy", part)
    gallery.tofile("raw.bin")
    assert command("prepare", "shards", "prepared", "--model", "resnet50").code == 0
    expected = knn(gallery[:20] + 1, gallery, 5, metric="l2")
    for source, *options in [
        ("shards",),
        ("shards", "--scan", "int8", "--checkpoint", "state"),
        ("shards", "--scan", "float32", "--checkpoint", "state"),
        ("shards/*.npy", "--memory-limit", "9.5MiB"),
        ("prepared", "--model", "resnet50", "--memory-limit", "8 mb"),
        ("named.npz", "--key", "rows", "--memory-limit", "9000000"),
        ("raw.bin", "--dtype", "float32", "--dim", "16"),
    ]:
        outputs = ("--indices", "i.npy", "--scores", "s.npy", "--json", "facts.json")
        result = command("search", "queries.npy", source, "-k", "5", "--metric", "l2", *outputs, *options)
        assert (result.code, result.err) == (0, "")
        np.testing.assert_array_equal(np.load("i.npy"), expected.indices)
        np.testing.assert_array_equal(np.load("s.npy"), expected.scores)
        assert np.load("i.npy").dtype == np.int64
    assert json.loads(Path("facts.json").read_text())["indices"] == "i.npy"
    assert command("search", "named.npz", "shards", "--queries-key", "queries", "--output", "n").code == 0
    assert not list(Path().glob("*.partial"))


@pytest.mark.parametrize("kind", ["ids", "groups"])
def test_search_leaves_out_rows_of_the_own_id_and_group(command: Command, kind: str) -> None:
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((60, 8)).astype(np.float32)
    sides = {f"query_{kind}": np.arange(7), f"gallery_{kind}": rng.integers(0, 9, 60)}
    for name, values in {"queries": gallery[:7], "gallery": gallery, **sides}.items():
        np.save(f"{name}.npy", values)
    options = (f"--query-{kind}", f"query_{kind}.npy", f"--gallery-{kind}", f"gallery_{kind}.npy")
    result = command("search", "queries.npy", "gallery.npy", "-k", "5", *options, "--indices", "i.npy", "--json", "-")
    assert (result.code, result.err) == (0, "")
    expected = knn(gallery[:7], gallery, 5, **sides).indices
    np.testing.assert_array_equal(np.load("i.npy"), expected)
    assert (expected != knn(gallery[:7], gallery, 5).indices).any()
    assert json.loads(result.out)[f"query_{kind}"] == f"query_{kind}.npy"


def test_progress_is_shown_where_standard_error_is_a_terminal(command: Command) -> None:
    line = [sys.executable, "-m", "graceful_fast", "search", "old.npy", "new.npy", "-k", "2", "--output", "n.npz"]
    master, terminal = pty.openpty()
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=terminal) as process:
        os.close(terminal)
        shown = os.read(master, 4096)
        while b"100 %" not in shown:
            shown += os.read(master, 4096)
    os.close(master)
    assert process.returncode == 0
    assert b"searched 5 of 5 rows (100 %)" in shown


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("none.npy", "new.npy"), "none.npy: no such file"),
        (("old.npy", "none.npy"), "none.npy: no such file"),
        (("old.npy", "*.fbin"), "*.fbin: expected files of this pattern, got none"),
        (("old.npy", "empty.npy"), "empty.npy: expected b'\\x93NUMPY'"),
        (("old.npy", "cut.npy"), "cut.npy: expected 188 bytes"),
        (("old.npy", "new.npy", "-k", "6"), "-k: expected 1 to 5"),
        (("old.npy", "new.npy", "-k", "0"), "-k: expected 1 to 5"),
        (
            ("old.npy", "new.npy", "--metric", "hamming"),
            "--metric: expected one of 'cosine', 'ip', 'l2', got 'hamming'",
        ),
        (("old.npy", "new.npy", "--scan", "int4"), "--scan: expected one of 'auto', 'int8', 'float32', got 'int4'"),
        (("old.npy", "narrow.npy"), "graceful-fast: narrow.npy: expected the dim of the queries"),
        (("long.npy", "new.npy"), "long.npy: expected a dtype of"),
        (("zero.npy", "new.npy"), "graceful-fast: zero.npy: row 3: cosine of a zero vector is undefined"),
        (("old.npy", "zero.npy"), "graceful-fast: zero.npy: row 3: cosine of a zero vector is undefined"),
        (("old.npy", "new.npy", "--key", "a"), "new.npy: key: expected None"),
        (("old.npy", "new.npy", "--model", "vit"), "new.npy: expected a gallery of model 'vit'"),
        (("old.npy", "new.npy", "--memory-limit", "2G"), "--memory-limit: expected bytes, or KiB to TiB"),
        (("old.npy", "new.npy", "--memory-limit", "GiB"), "--memory-limit: expected bytes"),
        (("old.npy", "new.npy", "--memory-limit", "9" * 400), "--memory-limit: expected bytes"),
        (("old.npy", "new.npy", "--memory-limit", "1e400 B"), "--memory-limit: expected bytes"),
        (("old.npy", "new.npy", "--memory-limit", "1KiB"), "--memory-limit: expected at least"),
        (("old.npy", "new.npy", "--memory-limit", "0"), "--memory-limit: expected a number of bytes, got 0"),
        (("old.npy", "new.npy", "--query-ids", "y.npy"), "--gallery-ids: expected together with query_ids, got None"),
        (
            ("old.npy", "new.npy", "--query-groups", "y.npy", "--gallery-groups", "new.npy"),
            "--gallery-groups new.npy: expected integers, got torch.float32",
        ),
        (("old.npy", "new.npy", "--query-ids", "none.npy", "--gallery-ids", "y.npy"), "none.npy: no such file"),
        (("old.npy", "new.npy", "--query-ids", "y.npy", "--output", "y.npy"), "expected another file than that of --q"),
        (("old.npy", "new.npy", "--checkpoint", "y.npy"), "checkpoint: y.npy: cannot make the directory"),
        (("old.npy", "new.npy", "--output", "nowhere/n.npz"), "nowhere/n.npz: cannot write"),
        (("old.npy", "narrow.npy", "--output", "narrow.npy"), "--output narrow.npy: expected another file than"),
        (("old.npy", "shards", "--output", "shards/a.npy"), "shards/a.npy: expected another file than that of GALLERY"),
        (("old.npy", "new.npy", "--scores", "n.npz"), "--scores n.npz: expected another file than that of --output"),
        (("old.npy", "new.npy", "--json", "n.npz"), "--json n.npz: expected another file than that of --output"),
        (("old.npy", "new.npy", "--json", "nowhere/n.json"), "nowhere/n.json: cannot write"),
    ],
)
def test_bad_searches_are_one_line_and_exit_code_2(command: Command, arguments: tuple[str, ...], reason: str) -> None:
    Path("empty.npy").touch()
    Path("cut.npy").write_bytes(Path("old.npy").read_bytes()[:-1])
    np.save("narrow.npy", OLD[:, :2])
    np.save("long.npy", OLD.astype(np.longdouble))
    np.save("zero.npy", OLD * (np.arange(5) != 3)[:, None])
    Path("shards").mkdir()
    np.save("shards/a.npy", OLD)
    before = {path: path.read_bytes() for path in Path().glob("**/*.npy")}
    output = () if "--output" in arguments else ("--output", "n.npz")
    refused(command("search", "-k", "2", *arguments, *output), reason)
    assert not list(Path().glob("n.npz*"))
    assert {path: path.read_bytes() for path in Path().glob("**/*.npy")} == before


def test_a_search_without_an_output_is_refused(command: Command) -> None:
    refused(command("search", "old.npy", "new.npy"), "expected at least one of --output, --indices, --scores")


def test_prepare_writes_a_gallery_of_the_model(command: Command) -> None:
    result = command("prepare", "new.npy", "prepared", "--model", "resnet50", "--json", "-")
    assert (result.code, result.err) == (0, "")
    facts = json.loads(result.out)
    assert (facts["gallery"], facts["dimensions"], facts["dtype"], facts["model"]) == (5, 3, "float32", "resnet50")
    refused(command("prepare", "new.npy", "prepared"), "prepared: expected a new or empty directory")
    refused(command("prepare", "none.npy", "p"), "none.npy: no such file")
    np.save("nan.npy", np.where(NEW == 4, np.nan, NEW))
    refused(command("prepare", "nan.npy", "p"), "graceful-fast: nan.npy: row 3: expected finite numbers")
    assert not list(Path().glob("p.*"))
    refused(
        command("search", "old.npy", "prepared", "--model", "vit", "--output", "n.npz"),
        "prepared: expected a gallery of model 'vit', got one of 'resnet50'",
    )


def test_a_link_is_kept_and_a_pipe_is_written_to(command: Command) -> None:
    Path("real.json").touch()
    Path("link.json").symlink_to("real.json")
    assert command(*COMPARE, "--json", "link.json").code == 0
    assert Path("link.json").is_symlink()
    assert json.loads(Path("real.json").read_text())["flips"]["total"] == 5
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        code = command(*COMPARE, "--json", "pipe").code
        written = reader.communicate(timeout=60)[0]
    assert (code, json.loads(written)["flips"]["total"]) == (0, 5)
    assert Path("pipe").is_fifo()


def test_names_from_windows_have_no_line_ends_and_no_byte_order_mark(command: Command) -> None:
    Path("windows.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\nowl\r\n\r\n")
    written = json.loads(command(*COMPARE, "--classes", "windows.txt", "--json", "-").out)
    assert sorted(row["name"] for row in written["per_class"]) == ["cat", "dog", "owl"]


def in_shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = line.replace("COMPARE", f"{sys.executable} -m graceful_fast {' '.join(COMPARE)}")
    environment = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, env=environment)


def test_a_full_disk_is_one_line_and_leaves_nothing(command: Command) -> None:
    before = sorted(Path().iterdir())
    for output in ("--json r.json", "--html r.html"):
        done = in_shell(f"ulimit -f 1; COMPARE {output}")  # no file above 1 KiB
        refused(Result(done.returncode, done.stdout, done.stderr), f"{output.split()[1]}: cannot write: File too large")
        assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("output", ["", "--json -"])
def test_output_that_cannot_be_written_is_one_line(command: Command, output: str) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("needs /dev/full")
    done = in_shell(f"COMPARE {output} > /dev/full")
    refused(Result(done.returncode, done.stdout, done.stderr), "standard output: No space left on device")


@pytest.mark.parametrize("output", ["", "--json -"])
def test_a_reader_that_has_seen_enough_is_no_error_message(command: Command, output: str) -> None:
    done = in_shell(f"(COMPARE {output}; echo $? >&2) | true")
    assert done.stderr == "141\n"


def test_a_terminal_without_the_sign_gets_another(command: Command) -> None:
    done = in_shell("COMPARE", PYTHONIOENCODING="ascii", COLUMNS="40")
    assert (done.returncode, done.stderr) == (0, "")
    assert "40.0?% of" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 40


def test_an_interrupt_is_no_defect(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "read_array", interrupt)
    result = command(*COMPARE)
    assert result.code == 130
    assert "Traceback" not in result.err


def test_a_defect_is_a_traceback_and_exit_code_70(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "read_array", lambda path: {}["gone"])
    result = command(*COMPARE)
    assert result.code == 70
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1] == "graceful-fast: unexpected error: 'gone'"


RETRIEVE = (
    *("retrieve", "--old-queries", "oq.npy", "--new-queries", "nq.npy", "--old-gallery", "og.npy"),
    *("--query-labels", "ql.npy", "--gallery-labels", "gl.npy"),
)


def save_versions() -> None:
    rng = np.random.default_rng(0)
    gallery_labels, query_labels = np.arange(30) % 6, np.arange(12) % 7
    centres = rng.standard_normal((7, 8))
    for name, labels in (("q", query_labels), ("g", gallery_labels)):
        np.save(f"o{name}.npy", (centres[labels] + 0.8 * rng.standard_normal((len(labels), 8))).astype(np.float32))
        np.save(f"n{name}.npy", (centres[labels] + 1.5 * rng.standard_normal((len(labels), 8))).astype(np.float32))
        np.save(f"{name}l.npy", labels)


def test_retrieve_gives_the_matrix_of_versions_and_what_broke(command: Command) -> None:
    save_versions()
    result = command(*RETRIEVE, "--new-gallery", "ng.npy", "-k", "1", "-k", "3", "--json", "-")
    assert (result.code, result.err) == (0, "")
    facts = json.loads(result.out)
    assert list(facts["matrix"]) == ["old/old", "new/old", "new/new"]
    assert (facts["queries"], facts["without_positive"], facts["k"]) == (12, 1, [1, 3])
    load = {name: np.load(f"{name}.npy") for name in ("oq", "nq", "og", "ng", "ql", "gl")}
    for name, (queries, gallery) in {"old/old": ("oq", "og"), "new/old": ("nq", "og"), "new/new": ("nq", "ng")}.items():
        expected = gf.retrieval_metrics(load[queries], load[gallery], load["ql"], load["gl"], k=(1, 3))
        assert facts["matrix"][name]["map"] == expected.map
        assert facts["matrix"][name]["cmc"] == {str(k): value for k, value in expected.cmc.items()}
    flips = facts["flips"]["new/old"]["1"]
    assert flips["total"] == 11
    assert flips["negative"] == len(flips["negative_indices"]) > 0


def test_retrieve_takes_any_gallery_and_a_limit(command: Command) -> None:
    save_versions()
    expected = json.loads(command(*RETRIEVE, "--json", "-").out)
    rows = np.load("og.npy")
    Path("shards").mkdir()
    for number, part in enumerate(np.split(rows, 3)):
        np.save(f"shards/{number}.npy", part)
    header = np.array(rows.shape, np.uint32).tobytes()
    Path("og.fbin").write_bytes(header + rows.tobytes())
    for source in ("shards", "og.fbin"):
        result = command(*RETRIEVE, "--old-gallery", source, "--memory-limit", "16MiB", "--json", "-")
        assert (result.code, result.err) == (0, "")
        assert json.loads(result.out) == expected
    np.savez("queries.npz", queries=np.load("oq.npy"))
    assert json.loads(command(*RETRIEVE, "--old-queries", "queries.npz", "--json", "-").out) == expected
    refused(command(*RETRIEVE, "--memory-limit", "1KiB"), "--memory-limit: expected at least")
    refused(
        command(*RETRIEVE, "--old-gallery", "shards", "--json", "shards/1.npy"), "another file than that of --old-g"
    )


def test_retrieve_prints_a_table_without_a_new_gallery(command: Command) -> None:
    save_versions()
    result = command(*RETRIEVE)
    assert (result.code, result.err) == (0, "")
    assert "new/old after old/old, hit@1:" in result.out
    assert "1 queries have no positive" in result.out
    assert "new/new" not in result.out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--new-queries", "none.npy"), "none.npy: no such file"),
        (("--new-queries", "narrow.npy"), "--old-gallery og.npy: expected the dim of the queries"),
        (("--new-queries", "nan.npy"), "--new-queries nan.npy: row 2: expected finite numbers"),
        (("--query-labels", "gl.npy"), "--query-labels gl.npy: expected shape (12,)"),
        (("--query-ids", "ql.npy"), "--gallery-ids: expected together with query_ids"),
        (("-k", "0"), "-k: expected depths of 1 or more, got 0"),
        (("--metric", "dot"), "--metric: expected one of 'cosine', 'ip', 'l2', got 'dot'"),
        (("--json", "og.npy"), "--json og.npy: expected another file than that of --old-gallery"),
    ],
)
def test_bad_retrievals_are_one_line_and_exit_code_2(command: Command, arguments: tuple[str, ...], reason: str) -> None:
    save_versions()
    rows = np.load("nq.npy")
    np.save("narrow.npy", rows[:, :2])
    np.save("nan.npy", np.where(np.arange(12)[:, None] == 2, np.nan, rows))
    refused(command(*RETRIEVE, *arguments), reason)
