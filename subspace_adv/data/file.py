"""Kind "file": points of your own."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from subspace_adv.data.given import GivenData
from subspace_adv.data.kind import Impossible
from subspace_adv.fields import DATA, DATA_FILE
from subspace_adv.pointfile import PointFile, absolute, read_points

_LABEL = "label"


def _text(path: object) -> object:
    return str(path) if hasattr(path, "__fspath__") else path


class FileData(GivenData, frozen=True):
    """Labelled points of a file: NumPy's `.npz`, `.csv` or `.parquet`."""

    path: Annotated[str, BeforeValidator(_text), AfterValidator(absolute), DATA_FILE] = ""
    label_column: Annotated[str, DATA] = _LABEL  # of a table

    def points(self) -> PointFile:
        """Those of the file."""
        return read_points(self.path, self.label_column)

    @property
    def source(self) -> tuple[str, str]:
        """The path."""
        return "path", self.path

    @classmethod
    def impossible(cls, values: Mapping[str, tuple]) -> Impossible | None:
        """A file must be named, and have a column of labels if that is."""
        if "" in values["path"]:
            return Impossible("path", "''", "no file is named; set it, such as path = 'points.npz'")
        if values["label_column"] != (_LABEL,) and all(path.lower().endswith(".npz") for path in values["path"]):
            return Impossible("label_column", values["label_column"][0], "changes nothing; an .npz has its labels in y")
        return super().impossible(values)
