"""Galleries in Arrow's columns: Parquet files, and what yields record batches (Table, Dataset, RecordBatchReader)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .gallery_rows import FileState, StreamRows, dtype_name, naming, optional

_READ_BYTES = 1 << 20  # of a column at a time; without it, or with pre_buffer, pyarrow holds the whole column


def parquet(path: Path, key: str | None) -> StreamRows:
    """A column of lists of a Parquet file."""
    pq = optional("pyarrow.parquet", "reading Parquet")
    state = FileState.of(path)
    with naming(path, "a Parquet file"), pq.ParquetFile(path) as file:
        metadata = file.metadata
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        name = _column(path, file.schema_arrow, key)
    ends = np.cumsum(groups, dtype=np.int64)
    if (total := int(ends[-1]) if groups else 0) != metadata.num_rows:
        raise ValueError(f"{path}: expected {metadata.num_rows} rows, got row groups of {total}")

    def batches(start: int, stop: int | None, rows: int) -> Iterator[Any]:
        stop = total if stop is None else stop
        wanted = [i for i, n in enumerate(groups) if ends[i] > start and ends[i] - n < stop and n]
        if not wanted:
            return
        with naming(path, "a Parquet file"), pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            first = int(ends[wanted[0]]) - groups[wanted[0]]
            for batch in file.iter_batches(rows, row_groups=wanted, columns=[name], use_threads=False):
                yield batch, first
                first += len(batch)

    dim, dtype = _dim_and_dtype(
        path, file.schema_arrow.field(name).type, lambda: (b for b, _ in batches(0, None, 1)), name
    )

    def read(start: int, stop: int | None, rows: int) -> Iterator[np.ndarray]:
        for batch, first in batches(start, stop, rows):
            low, high = max(start - first, 0), len(batch) if stop is None else min(stop - first, len(batch))
            if low < high:
                yield _values(batch.column(0).slice(low, high - low), dim, path, first + low)

    def group_of(rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(ends, rows, "right")

    return StreamRows("Parquet", total, dim, dtype, read, (state,), [name], unit=group_of)


def arrow(value: Any, key: str | None) -> StreamRows:
    """A column of lists of anything that yields Arrow record batches; what has no length can be read once."""
    pa = optional("pyarrow", "reading Arrow data")
    counted = callable(getattr(value, "count_rows", None))  # a Dataset
    again = counted or hasattr(value, "__len__")

    if again and isinstance(getattr(value, "schema", None), pa.Schema):
        schema, stream = value.schema, None
    else:
        stream = _reader(value)
        schema = stream.schema
    name = _column("gallery", schema, key)
    ahead: list[Any] = []  # read of a stream to learn its dim

    def batches(rows: int) -> Iterator[Any]:
        if counted:
            yield from value.to_batches(columns=[name], batch_size=rows, batch_readahead=1, fragment_readahead=1)
        elif again:
            yield from _reader(value)
        else:
            while ahead:
                yield ahead.pop(0)
            while stream is not None and (batch := next(stream, None)) is not None:
                yield batch  # no `yield from`, which would close a stream that is left early

    def first_batches() -> Iterator[Any]:
        for batch in batches(1024):
            if not again:
                ahead.append(batch)
            yield batch.select([name])

    dim, dtype = _dim_and_dtype("gallery", schema.field(name).type, first_batches, name)

    def read(start: int, stop: int | None, rows: int) -> Iterator[np.ndarray]:
        first = 0
        for batch in batches(rows):
            low, high = max(start - first, 0), len(batch) if stop is None else min(stop - first, len(batch))
            for at in range(low, high, rows):
                column = batch.column(batch.schema.get_field_index(name)).slice(at, min(rows, high - at))
                yield _values(column, dim, "gallery", first + at)
            first += len(batch)
            if stop is not None and first >= stop:
                return

    rows = None if not again else value.count_rows() if counted else len(value)
    return StreamRows(type(value).__name__, rows, dim, dtype, read, once=not again)


def _reader(value: Any) -> Any:
    import pyarrow as pa

    reader = value.to_reader() if hasattr(value, "to_reader") else value
    return reader if isinstance(reader, pa.RecordBatchReader) else pa.RecordBatchReader.from_stream(reader)


def _column(source: object, schema: Any, key: str | None) -> str:
    """The column that `key` names, or the only one of lists."""
    if key is not None:
        if schema.names.count(key) != 1:
            raise ValueError(f"{source}: expected one column {key!r} (key=), got {', '.join(map(repr, schema.names))}")
        return key
    lists = [field.name for field in schema if _value_type(field.type) is not None]
    if len(lists) != 1:
        raise ValueError(
            f"{source}: expected one column of lists, or key=, got {', '.join(map(repr, lists)) or 'none'}"
        )
    return str(lists[0])


def _value_type(kind: Any) -> Any:
    """What the lists of a column hold; None unless it is one of lists."""
    import pyarrow as pa

    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return kind.value_type if any(test(kind) for test in lists) else None


def _dim_and_dtype(source: object, kind: Any, first_batches: Callable[[], Iterator[Any]], name: str) -> tuple[int, str]:
    """From the column's type, and from its first row where lists may have any length."""
    import pyarrow as pa

    where = f"{source}: column {name!r}"
    value_type = _value_type(kind)
    if value_type is None:
        raise ValueError(f"{where}: expected lists of numbers, got {kind}")
    with naming(where, "lists of numbers"):
        dtype = dtype_name(value_type.to_pandas_dtype(), where)
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if pa.types.is_fixed_size_list(storage):
        dim = storage.list_size
    else:
        head = next((batch.column(0)[0].as_py() for batch in first_batches() if len(batch)), None)
        dim = len(head or ())
    if dim < 1:
        raise ValueError(f"{where}: expected lists of at least one number, got a first row of {dim}")
    return dim, dtype


def _values(column: Any, dim: int, source: object, first: int) -> np.ndarray:
    """The lists of one batch as (n, dim), whose first is row `first` of the gallery."""
    import pyarrow as pa

    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    if column.null_count:
        row = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{source}: row {row}: expected {dim} numbers, got null")
    if not pa.types.is_fixed_size_list(column.type):
        lengths = np.diff(column.offsets.to_numpy())
        if len(odd := np.flatnonzero(lengths != dim)):
            raise ValueError(
                f"{source}: row {first + odd[0]}: expected {dim} numbers as in row 0, got {lengths[odd[0]]}"
            )
    flat = column.flatten()
    if flat.null_count:
        row = first + int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0]) // dim
        raise ValueError(f"{source}: row {row}: expected {dim} numbers, got null among them")
    values: np.ndarray = flat.to_numpy(zero_copy_only=False).reshape(len(column), dim)
    return values
