"""count_flips against a sort in plain Python; what it accepts and refuses; that it needs no torch and no extension."""

import subprocess
import sys
from functools import cache
from typing import Any

import engines
import numpy as np
import pytest
import torch
from cases import FlipCase, flip_cases
from hypothesis import given, settings
from hypothesis import strategies as st

import graceful_fast as gf
from graceful_fast import flips as flips_module
from graceful_fast import reference
from graceful_fast._arrays import as_tensor

CASES = list(flip_cases())
NAN = float("nan")


@cache
def expected_of(name: str, topk: int) -> dict[str, Any]:
    return expected(next(case for case in CASES if case.name == name), topk)


def expected(case: FlipCase, topk: int) -> dict[str, Any]:
    pairs = list(zip(*(reference.right(s, case.target, topk) for s in (case.old, case.new)), strict=True))
    return {
        "both_correct": pairs.count((True, True)),
        "negative": pairs.count((True, False)),
        "positive": pairs.count((False, True)),
        "both_wrong": pairs.count((False, False)),
        "negative_indices": [i for i, pair in enumerate(pairs) if pair == (True, False)],
    }


def observed(counts: gf.FlipCounts) -> dict[str, Any]:
    return {
        "both_correct": counts.both_correct,
        "negative": counts.negative,
        "positive": counts.positive,
        "both_wrong": counts.both_wrong,
        "negative_indices": counts.negative_indices.tolist(),
    }


@pytest.mark.parametrize("engine", ["compiled", "numpy", "torch", "simt", "simt-random", "cuda"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_counts_are_those_of_a_sort(case: FlipCase, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old: Any = case.old
    new: Any = case.new
    if engine in ("numpy", "torch"):
        monkeypatch.setattr(flips_module, "_compiled", lambda *_: None)
    elif engine != "compiled":
        place = engines.use(engine, monkeypatch).place
        old, new = (place(as_tensor(scores, "scores")) for scores in (old, new))
    if engine == "torch":
        old, new = (torch.from_numpy(np.array(s, dtype=s.dtype.newbyteorder("="), order="C")) for s in (old, new))
    for topk in {1, min(2, case.old.shape[1], case.new.shape[1]), min(case.old.shape[1], case.new.shape[1])}:
        assert observed(gf.count_flips(old, new, case.target, topk=topk)) == expected_of(case.name, topk)


def test_compiled_op_is_what_arrays_are_counted_with() -> None:
    case = CASES[-1]
    labels = np.zeros(len(case.new), np.int64)
    assert flips_module._compiled(case.new, case.new, labels, 1) is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_torch_scores_of_every_dtype(dtype: torch.dtype) -> None:
    old, new = torch.randn(50, 7).to(dtype).requires_grad_(), torch.randn(50, 7).to(dtype)
    target = torch.randint(0, 7, (50,))
    case = FlipCase("", old.detach().double().numpy(), new.double().numpy(), target.numpy())
    counts = gf.count_flips(old, new, target, topk=2)
    assert observed(counts) == expected(case, 2)
    assert isinstance(counts.negative_indices, torch.Tensor)
    assert counts.negative_indices.dtype == torch.int64


def test_dlpack_and_lists_are_taken() -> None:
    class Exporter:
        def __init__(self, array: np.ndarray) -> None:
            self.__dlpack__ = array.__dlpack__
            self.__dlpack_device__ = array.__dlpack_device__

    old = np.array([[1.0, 0.0], [1.0, 0.0]])
    counts = gf.count_flips(Exporter(old), [[0.0, 1.0], [1.0, 0.0]], [0, 0])
    assert (counts.negative, counts.both_correct) == (1, 1)
    assert isinstance(counts.negative_indices, np.ndarray)


def test_predicted_classes_and_scores_mix() -> None:
    scores = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    target = np.array([1, 1, 1])
    for new in (scores, torch.from_numpy(scores)):
        assert gf.count_flips(np.array([1, 1, 0]), new, target).negative_indices.tolist() == [1]
    assert gf.count_flips(scores, np.array([1, 1, 0], np.uint8), target).negative_indices.tolist() == [2]


def test_a_predicted_class_that_is_no_label_is_wrong_not_an_error() -> None:
    counts = gf.count_flips(np.array([3, 5]), np.array([99, -1]), np.array([3, 5]))
    assert (counts.negative, counts.nfr) == (2, 1.0)


def test_a_model_is_wrong_on_classes_that_it_does_not_know() -> None:
    old, new = np.ones((2, 2), np.float32), np.eye(3, dtype=np.float32)[:2][:, ::-1].copy()
    counts = gf.count_flips(old, new, np.array([2, 0]))
    assert (counts.positive, counts.negative, counts.both_correct, counts.both_wrong) == (1, 1, 0, 0)
    assert gf.count_flips(new, old, np.array([2, 0])).negative_indices.tolist() == [0]


@given(
    st.integers(1, 60).flatmap(
        lambda n: st.tuples(*(st.lists(st.integers(0, 3), min_size=n, max_size=n) for _ in range(4)))
    )
)
@settings(derandomize=True, deadline=None)
def test_flip_rates_differ_by_the_change_of_the_error_rate(arrays: tuple[list[int], ...]) -> None:
    old, new, target, groups = (np.array(values) for values in arrays)
    counts = gf.count_flips(old, new, target, groups=groups)
    for part in (counts, *counts.by_group.values()):
        assert part.nfr - part.pfr == pytest.approx(part.error_new - part.error_old, abs=1e-15)
        assert part.total == part.both_correct + part.negative + part.positive + part.both_wrong
    assert sum(part.total for part in counts.by_group.values()) == counts.total
    indices = sorted(i for part in counts.by_group.values() for i in part.negative_indices.tolist())
    assert indices == counts.negative_indices.tolist()


def test_rates_of_a_worked_example() -> None:
    counts = gf.FlipCounts(both_correct=50, negative=10, positive=25, both_wrong=15)
    assert (counts.total, counts.nfr, counts.pfr) == (100, 0.1, 0.25)
    assert (counts.error_old, counts.error_new) == (0.4, 0.25)
    assert counts.relative_nfr == pytest.approx(0.1 / (0.6 * 0.25), rel=1e-15)


def test_relative_nfr_is_nan_where_nothing_could_break_or_nothing_is_wrong() -> None:
    assert np.isnan(gf.FlipCounts(0, 0, 3, 4).relative_nfr)  # the old model is never right
    assert np.isnan(gf.FlipCounts(5, 0, 3, 0).relative_nfr)  # the new model is never wrong
    assert gf.FlipCounts(5, 0, 3, 1).relative_nfr == 0


def test_groups_are_counted_apart_with_rows_of_the_whole() -> None:
    old, new, target = np.zeros(6, int), np.array([0, 1, 0, 1, 1, 0]), np.zeros(6, int)
    counts = gf.count_flips(old, new, target, groups=["b", "a", "b", "b", "a", "c"])
    assert list(counts.by_group) == ["a", "b", "c"]
    rows = {name: (part.total, part.negative_indices.tolist()) for name, part in counts.by_group.items()}
    assert rows == {"a": (2, [1, 4]), "b": (3, [3]), "c": (1, [])}
    by_number = gf.count_flips(old, new, target, groups=torch.tensor([7, 7, 7, -1, -1, -1])).by_group
    assert {name: part.negative for name, part in by_number.items()} == {-1: 2, 7: 1}


@pytest.mark.parametrize("shape", [(0,), (0, 4)])
def test_no_samples_give_zero_counts_and_nan_rates(shape: tuple[int, ...]) -> None:
    empty = np.zeros(shape, np.float32 if len(shape) == 2 else np.int64)
    counts = gf.count_flips(empty, empty, np.zeros(0, np.int64), groups=[])
    assert (counts.total, counts.negative_indices.tolist(), counts.by_group) == (0, [], {})
    rates = [counts.nfr, counts.pfr, counts.relative_nfr, counts.error_old, counts.error_new]
    assert np.isnan(rates).all()


SCORES = np.zeros((4, 3), np.float32)
TARGET = np.array([0, 1, 2, 0])
POISONED = SCORES.copy()
POISONED[2, 1] = NAN


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((SCORES[:3], SCORES, TARGET), ValueError, r"old: .* got \(3, 3\) and target \(4,\)"),
        ((SCORES, SCORES[:3], TARGET), ValueError, r"new: .* got \(3, 3\) and target \(4,\)"),
        ((SCORES, SCORES[None], TARGET), ValueError, r"new: .* got \(1, 4, 3\)"),
        ((SCORES, SCORES, TARGET[:, None]), ValueError, r"target: expected shape \(N,\), got \(4, 1\)"),
        ((SCORES, SCORES, np.array([0, 1, -1, 0])), ValueError, "target: .* got -1 in row 2"),
        ((SCORES, SCORES, np.array([0, 1, 2, 3])), ValueError, "target: .* below 3 .* got 3 in row 3"),
        ((SCORES, SCORES, np.array([0, 1, 2**64 - 1, 3], np.uint64)), ValueError, "target: .* in row 2"),
        ((SCORES, SCORES, TARGET.astype(float)), TypeError, "target: expected integers, got dtype float64"),
        ((POISONED, SCORES, TARGET), ValueError, "old: expected scores without NaN, got one in row 2"),
        ((SCORES, POISONED, TARGET), ValueError, "new: expected scores without NaN, got one in row 2"),
        ((SCORES[:, :1], POISONED, TARGET), ValueError, "new: expected scores without NaN"),
        ((TARGET, POISONED, TARGET), ValueError, "new: expected scores without NaN"),
        ((TARGET.astype(np.float32), TARGET, TARGET), TypeError, "old: expected predicted classes as integers"),
        ((SCORES.astype(int), SCORES, TARGET), TypeError, "old: expected scores in float16"),
        ((SCORES, SCORES.astype(complex), TARGET), TypeError, "new: .* complex128"),
        ((SCORES[:, :0], SCORES, TARGET), ValueError, "topk: expected at most the 0 classes of old"),
        (("cat", SCORES, TARGET), (TypeError, ValueError), "old: "),
        (([[0.5, 0.5], [1.0]], SCORES, TARGET), ValueError, "old: expected rows of one length"),
        ((SCORES, SCORES, [[0], [1, 2]]), ValueError, "target: expected rows of one length"),
        ((object(), SCORES, TARGET), TypeError, "old: .* got object"),
    ],
)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_bad_input_names_argument_expectation_and_fact(
    arguments: tuple[Any, ...], error: Any, message: str, kind: str
) -> None:
    if kind == "torch":
        arguments = tuple(torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments)
    with pytest.raises(error, match=message):
        gf.count_flips(*arguments)


@pytest.mark.parametrize(
    ("topk", "error", "message"),
    [
        (0, ValueError, "topk: expected 1 or more, got 0"),
        (4, ValueError, "topk: expected at most the 3 classes of old, got 4"),
        (True, ValueError, "topk"),
        (1.5, TypeError, "topk: expected an integer, got float"),
        ("1", TypeError, "topk: expected an integer, got str"),
    ],
)
def test_bad_topk(topk: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gf.count_flips(SCORES, SCORES, TARGET, topk=topk)


def test_topk_of_predicted_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="topk: expected 1, as new is predicted classes"):
        gf.count_flips(SCORES, TARGET, TARGET, topk=2)


def test_rows_of_a_large_group_are_ascending() -> None:
    rng = np.random.default_rng(0)
    groups, new = rng.integers(0, 3, 5000), rng.integers(0, 2, 5000)
    zeros = np.zeros(5000, int)
    for name, part in gf.count_flips(zeros, new, zeros, groups=groups).by_group.items():
        assert part.negative_indices.tolist() == np.flatnonzero((groups == name) & (new == 1)).tolist()


def test_groups_may_be_strings_as_objects() -> None:
    groups = np.array(["b", "a", "bb", "a"], object)
    by_group = gf.count_flips(SCORES, SCORES, TARGET, groups=groups).by_group
    assert {name: part.total for name, part in by_group.items()} == {"a": 2, "b": 1, "bb": 1}


@pytest.mark.parametrize(("groups", "error"), [([1, 2], ValueError), ([0.5] * 4, TypeError), ([None] * 4, TypeError)])
def test_bad_groups(groups: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="groups: expected"):
        gf.count_flips(SCORES, SCORES, TARGET, groups=groups)


def test_input_is_left_as_it_was() -> None:
    old, target = SCORES.copy(), TARGET.copy()
    for array in (old, target):
        array.flags.writeable = False
    gf.count_flips(old, old, target)
    assert (old == SCORES).all()
    assert (target == TARGET).all()


@pytest.mark.parametrize("blocked", [("torch", "graceful_fast._C"), ("graceful_fast._C",), ("jinja2", "rich", "torch")])
def test_needs_neither_torch_nor_the_extension(blocked: tuple[str, ...]) -> None:
    code = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import numpy as np
import graceful_fast as gf
import graceful_fast.update
scores = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
assert gf.count_flips(scores, scores[::-1], np.array([0, 0, 0]), groups=["a", "b", "a"]).negative == 1
report = gf.compare_classifiers(scores, scores[::-1], np.array([0, 0, 0]), classes=["cat", "dog"])
assert report.broken[0].row == 0 and '"nfr": 0.33' in report.to_json()
assert sys.modules.get("torch") is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- memory layouts that torch does not take --------------------------------------------------------------------------


def test_a_field_of_records_is_counted() -> None:
    records = np.zeros(3, dtype=[("id", "u1"), ("scores", "f4", (2,))])  # rows 9 bytes apart
    records["scores"] = [[1, 0], [1, 0], [0, 1]]
    flips = gf.count_flips(records["scores"], np.zeros((3, 2), np.float32), np.array([0, 1, 1]))
    assert (flips.both_correct, flips.negative, flips.positive, flips.both_wrong) == (1, 1, 0, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_subnormal_scores_count_when_the_caller_flushes_them(dtype: torch.dtype) -> None:
    scores = torch.zeros(400, 1000, dtype=dtype)  # more than one thread's rows
    scores[:, 7] = torch.finfo(dtype).smallest_normal / 4
    target = torch.full((400,), 7)
    torch.set_flush_denormal(True)
    try:
        flips = gf.count_flips(scores, scores, target)
    finally:
        torch.set_flush_denormal(False)
    assert flips.both_correct == 400
