"""A `.npz` file: an array of images, perhaps one of labels and one of units. Never unpickled."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from hyperdp.errors import DataError
from hyperdp.private.readers.images import check_size
from hyperdp.private.readers.rows import Columns, Row, as_text, pick

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError)
_Header = tuple[tuple[int, ...], bool, np.dtype[np.generic]]


class NpzRows:
    """The arrays of a `.npz` file, the images streamed one by one.

    Args:
        path: the file.
        columns: names of arrays; images by default `images` or `x`.

    Raises:
        DataError: no such array, one that would have to be unpickled, or of different lengths.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self._path = path
        with _readable(path), zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            self._images = pick(columns.image, names, option="--image-column", source=f"'{path}'")
            with archive.open(f"{self._images}.npy") as stream:
                self._shape, self._fortran, self._dtype = self._header(stream, self._images)
        if len(self._shape) < 3:
            raise DataError(
                expected=f"'{self._images}' in '{path}' to be [n, h, w], [n, h, w, c] or "
                "[n, c, h, w]",
                found=f"{len(self._shape)} dimensions",
                todo="Reshape it; flat images need their height and width back.",
            )
        # Of [n, h, w, c] and [n, c, h, w] alike, no fewer pixels than this are meant.
        check_size(math.prod(self._shape[1:]) // max(self._channels(), 1), 1, f"'{self._images}'")
        self._labels = self._texts(columns.label, names, "--label-column")
        self._units = self._texts(columns.unit, names, "--unit-column")

    def count(self) -> int:
        """Number of images that the header declares."""
        return self._shape[0]

    def rows(self) -> Iterator[Row]:
        """Yield one row an image."""
        for index, image in enumerate(self._stream()):
            yield Row(
                where=f"{self._images}[{index}]",
                image=image,
                label=None if self._labels is None else self._labels[index],
                unit=None if self._units is None else self._units[index],
            )

    def _channels(self) -> int:
        if len(self._shape) == 3:
            return 1
        return self._shape[-1] if self._shape[-1] <= 4 else self._shape[1]

    def _stream(self) -> Iterator[npt.NDArray[np.generic]]:
        with (
            _readable(self._path),
            zipfile.ZipFile(self._path) as archive,
            archive.open(f"{self._images}.npy") as stream,
        ):
            if self._fortran:
                yield from np.lib.format.read_array(stream, allow_pickle=False)
                return
            self._header(stream, self._images)
            size = math.prod(self._shape[1:]) * self._dtype.itemsize
            for _ in range(self._shape[0]):
                data = stream.read(size)
                if len(data) < size:
                    raise EOFError("fewer images than the header declares")
                yield np.frombuffer(data, dtype=self._dtype).reshape(self._shape[1:])

    def _texts(
        self, asked: str | None, names: list[str], option: str
    ) -> tuple[str | None, ...] | None:
        if asked is None:
            return None
        name = pick(asked, names, option=option, source=f"'{self._path}'")
        with _readable(self._path), zipfile.ZipFile(self._path) as archive:
            with archive.open(f"{name}.npy") as stream:
                self._header(stream, name)
            with archive.open(f"{name}.npy") as stream:
                values = np.lib.format.read_array(stream, allow_pickle=False)
        if values.shape != self._shape[:1]:
            raise DataError(
                expected=f"'{name}' in '{self._path}' to hold one value an image",
                found=f"{values.ndim} dimensions, or another length than '{self._images}'",
                todo="Save both arrays with the same first dimension.",
            )
        return tuple(as_text(value) for value in values)

    def _header(self, stream: IO[bytes], name: str) -> _Header:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise DataError(
                expected=f"'{name}' in '{self._path}' to be a plain array",
                found=f"version {version} of the npy format, which is for structured arrays",
                todo="Save a plain array, such as uint8 [n, h, w].",
            )
        shape, fortran, dtype = read(stream)
        if dtype.hasobject:
            raise DataError(
                expected=f"'{name}' in '{self._path}' to be numbers or text",
                found="Python objects, which only pickle could load; hyperdp never unpickles",
                todo="Save it with a plain type, such as uint8 [n, h, w] or an array of strings.",
            )
        return shape, fortran, dtype


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say which file is damaged, whatever the layer that notices."""
    try:
        yield
    except _DAMAGE as error:
        raise DataError(
            expected=f"'{path}' to be an undamaged .npz file",
            found=f"something that cannot be read as one ({type(error).__name__})",
            todo="Save it again with numpy.savez.",
        ) from error
