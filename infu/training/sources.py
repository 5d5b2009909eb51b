"""Where photographs come from: folders of pictures, tar shards (webdataset), parquet files -> units of work.

A unit is what one worker does at a time, and the same list of sources gives the same units on every machine.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infu.errors import InvalidRequest, MissingFile

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp"}
IMAGE_COLUMNS, CAPTION_COLUMNS = ("image", "jpg", "png", "bytes"), ("caption", "text", "prompt")


@dataclass(frozen=True)
class Unit:
    """`paths`: picture files, or one tar or parquet file, of which `group` is the row group. `root`: what the
    names of pictures are relative to."""

    kind: str  # "folder", "tar", "parquet"
    root: str
    paths: tuple[str, ...]
    group: int = 0

    @property
    def name(self) -> str:
        """The same for the same pictures, wherever they lie."""
        inside = [str(Path(path).relative_to(self.root)) for path in self.paths]
        return hashlib.sha256(json.dumps([self.kind, inside, self.group]).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Unit":
        values = json.loads(text)
        return cls(**values | {"paths": tuple(values["paths"])})


@dataclass(frozen=True)
class RawPhoto:
    """A picture as its file has it, its name among all of its source, and its caption where there is one."""

    name: str
    data: bytes
    caption: str | None


def list_units(sources: Sequence[Path], per_unit: int) -> list[Unit]:
    """Raises `MissingFile` where a source is not there, `InvalidRequest` where it holds no picture."""
    units = []
    for source in sources:
        if not source.exists():
            raise MissingFile(f"There is no {source.name!r} to read photographs from. Check the name.")
        found = list(list_source(source, per_unit))
        if not found:
            raise InvalidRequest(
                f"{source.name!r} holds no pictures, tar shards or parquet files. Name the folder that does."
            )
        units += found
    return units


def list_source(source: Path, per_unit: int) -> Iterator[Unit]:
    root = source if source.is_dir() else source.parent
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    pictures = [str(path) for path in files if path.suffix.lower() in PICTURES]
    for start in range(0, len(pictures), per_unit):
        yield Unit("folder", str(root), tuple(pictures[start : start + per_unit]))
    for path in files:
        if path.suffix == ".tar":
            yield Unit("tar", str(root), (str(path),))
        elif path.suffix == ".parquet":
            from pyarrow.parquet import ParquetFile

            for group in range(ParquetFile(path).num_row_groups):
                yield Unit("parquet", str(root), (str(path),), group)


def read_unit(unit: Unit) -> Iterator[RawPhoto]:
    """The pictures of a unit, in order. Names are unique within the source."""
    reader = {"folder": read_folder, "tar": read_tar, "parquet": read_parquet}[unit.kind]
    yield from reader(unit)


def read_folder(unit: Unit) -> Iterator[RawPhoto]:
    """A caption stands beside its picture, as `NAME.txt`, or as "caption" or "text" in `NAME.json`."""
    for path in map(Path, unit.paths):
        beside = {"txt": path.with_suffix(".txt"), "json": path.with_suffix(".json")}
        texts = {kind: file.read_bytes() for kind, file in beside.items() if file.is_file()}
        yield RawPhoto(str(path.relative_to(unit.root)), path.read_bytes(), find_caption(texts))


def read_tar(unit: Unit) -> Iterator[RawPhoto]:
    """webdataset's layout: the files of a sample follow one another and differ in their ending alone."""
    from webdataset.tariterators import group_by_keys

    (path,) = map(Path, unit.paths)
    with tarfile.open(path) as archive:
        files = (
            {"fname": member.name, "data": archive.extractfile(member).read(), "__url__": path.name}
            for member in archive
            if member.isfile()
        )
        for sample in group_by_keys(files):
            picture = next((sample[k] for k in sample if f".{k.rsplit('.', 1)[-1]}" in PICTURES), None)
            if picture is not None:
                where = Path(unit.paths[0]).relative_to(unit.root)
                yield RawPhoto(f"{where}/{sample['__key__']}", picture, find_caption(sample))


def read_parquet(unit: Unit) -> Iterator[RawPhoto]:
    """A column of file contents (bytes, or the hub's {bytes, path}) and, where there is one, of captions."""
    from pyarrow.parquet import ParquetFile

    (path,) = map(Path, unit.paths)
    file = ParquetFile(path)
    names = file.schema_arrow.names
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None:
        raise InvalidRequest(
            f"{path.name} has no column of pictures ({', '.join(IMAGE_COLUMNS)}); it has {', '.join(names)}."
        )
    caption = next((name for name in CAPTION_COLUMNS if name in names), None)
    table = file.read_row_group(unit.group, columns=[name for name in (image, caption) if name])
    for i, row in enumerate(table.to_pylist()):
        data = row[image]["bytes"] if isinstance(row[image], dict) else row[image]
        name = f"{path.relative_to(unit.root)}/{unit.group}-{i}"
        yield RawPhoto(name, data or b"", row[caption] if caption else None)


def find_caption(texts: dict[str, Any]) -> str | None:
    """What stands beside a picture, by its ending -> its caption."""
    if "txt" in texts:
        return texts["txt"].decode("utf-8", "replace").strip() or None
    if "json" in texts:
        try:
            values = json.loads(texts["json"])
        except ValueError:
            return None
        found = [values.get(name) for name in CAPTION_COLUMNS] if isinstance(values, dict) else []
        return next((text for text in found if isinstance(text, str) and text), None)
    return None
