"""Stands in for the counting and histogram endings of the scan: the same answers, in float64, slowly."""

import numpy as np
import torch


def ScanStatus(*a):
    from ._ops import ScanStatus as S
    return S(*a, 0, 0, 0)

from .reference import similarity


def scores(queries: torch.Tensor, gallery: torch.Tensor, metric: str):
    q, x = queries.double().numpy(), gallery.double().numpy()
    for row in q:
        yield similarity(row, x, metric)


def faults(queries: torch.Tensor, gallery: torch.Tensor, metric: str) -> list[int]:
    for which, rows in enumerate((queries, gallery), 1):
        norms = (rows.double() ** 2).sum(1)
        bad = ~torch.isfinite(norms) | (norms > 2.0**1020) | ((norms == 0) & (metric == "cosine"))
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            finite = bool(torch.isfinite(rows[row]).all())
            return [which, row, 1 if not finite else 2 if norms[row] == 0 else 3, 0]
    return [0, 0, 0, 0]


def scan_count(queries, gallery, metric, positive_start, positive_rows, excluded_start, excluded_rows):
    fault = faults(queries, gallery, metric)
    out = np.zeros((3, len(positive_rows)), np.int64)
    if not fault[0]:
        for i, score in enumerate(scores(queries, gallery, metric)):
            allowed = np.ones(len(score), bool)
            allowed[excluded_rows[excluded_start[i] : excluded_start[i + 1]].numpy()] = False
            kept, index = score[allowed], np.flatnonzero(allowed)
            for p in range(positive_start[i], positive_start[i + 1]):
                row = int(positive_rows[p])
                out[:, p] = (
                    (kept > score[row]).sum(),
                    (kept == score[row]).sum(),
                    ((kept == score[row]) & (index < row)).sum(),
                )
    return torch.from_numpy(out), ScanStatus(*fault)


def ordered(key):
    bits = np.asarray(key, np.float64).view(np.int64)
    return np.where(bits < 0, np.int64(-(2**63)) - bits, bits)


def all_pairs(a, b, metric, labels, ids, within):
    for i, score in enumerate(scores(a, b, metric)):
        use = np.ones(len(score), bool)
        if within:
            use[: i + 1] = False
        if ids[0] is not None:
            use &= (ids[1] != ids[0][i]).numpy()
        yield score[use], (labels[1] == labels[0][i]).numpy()[use]


def scan_pairs(a, b, metric, rows, columns):
    fault = faults(a, b, metric)
    q, x = a.double().numpy(), b.double().numpy()
    keys = [similarity(q[i], x[j : j + 1], metric)[0] for i, j in zip(rows.tolist(), columns.tolist(), strict=True)]
    return torch.tensor(keys, dtype=torch.float64), ScanStatus(*fault)


def scan_histogram(a, b, metric, labels, ids, within, origin, width, bins, keep, capacity):
    """Counts (2, bins) [impostor, genuine], kept keys, genuine + 2 * range, margin, status (4: wanted keeping)."""
    fault = faults(a, b, metric)
    counts = np.zeros((2, bins), np.int64)
    kept, kind = [], []
    flags = np.full(bins, -1)
    for i, (first, last) in enumerate(keep.tolist()):
        flags[first : last + 1] = i
    if not fault[0]:
        for key, genuine in all_pairs(a, b, metric, labels, ids, within):
            place = np.clip(np.floor((key - origin) / width), 0, bins - 1).astype(np.int64)
            for g in (0, 1):
                counts[g] += np.bincount(place[genuine == g], minlength=bins)
            inside = flags[place] >= 0
            kept.append(key[inside])
            kind.append((genuine + 2 * flags[place])[inside].astype(np.uint8))
    return _result(counts, kept, kind, capacity, fault, torch.tensor(0.0))


def scan_between(a, b, metric, labels, ids, within, lowest, shift, bins, capacity):
    """The same for exact keys: bin 0 below `lowest` (an ordered int), the last above, the others 2^shift values each."""
    fault = faults(a, b, metric)
    counts = np.zeros((2, bins), np.int64)
    kept, kind = [], []
    highest = lowest + ((bins - 2) << shift) - 1
    if not fault[0]:
        for key, genuine in all_pairs(a, b, metric, labels, ids, within):
            value = [int(o) for o in ordered(key)]
            place = np.array(
                [0 if o < lowest else bins - 1 if o > highest else 1 + ((o - lowest) >> shift) for o in value], int
            )
            for g in (0, 1):
                counts[g] += np.bincount(place[genuine == g], minlength=bins)
            inside = (place > 0) & (place < bins - 1)
            kept.append(key[inside])
            kind.append(genuine[inside].astype(np.uint8))
    return _result(counts, kept, kind, capacity, fault)


def _result(counts, kept, kind, capacity, fault, *more):
    kept = np.concatenate(kept) if kept else np.zeros(0)
    kind = np.concatenate(kind) if kind else np.zeros(0, np.uint8)
    wanted = len(kept)
    if wanted > capacity:
        kept, kind = kept[:0], kind[:0]
    return (*map(torch.from_numpy, (counts, kept, kind)), *more, torch.tensor(wanted), ScanStatus(*fault))
