"""The kinds of data, a file and a row each: labelled points on a low-dimensional subspace, from settings alone."""

from subspace_adv.data.band_limited import BandLimitedData
from subspace_adv.data.chessboard import ChessboardData
from subspace_adv.data.digits import DigitsData
from subspace_adv.data.drawn import CLUSTER_SPREAD
from subspace_adv.data.file import FileData
from subspace_adv.data.kind import HELDOUT, Data, DataSettings, Impossible, Shape, as_data, padded
from subspace_adv.data.labels import Label, signs, two_classes
from subspace_adv.data.leading import Leading
from subspace_adv.data.line import LineData
from subspace_adv.data.patches import PatchesData
from subspace_adv.data.subspace import SubspaceData
from subspace_adv.rows import Rows


def _check(kind: str, row: type[DataSettings]) -> None:
    if missing := sorted(row.__abstractmethods__):
        raise TypeError(f"kind {kind!r}: {row.__name__} leaves out {', '.join(missing)}")


KINDS: Rows[type[DataSettings]] = Rows(
    "kind",
    {
        "line": LineData,
        "chessboard": ChessboardData,
        "subspace": SubspaceData,
        "patches": PatchesData,
        "band-limited": BandLimitedData,
        "file": FileData,
        "digits": DigitsData,
    },
    _check,
)

__all__ = [
    "CLUSTER_SPREAD",
    "HELDOUT",
    "KINDS",
    "BandLimitedData",
    "ChessboardData",
    "Data",
    "DataSettings",
    "DigitsData",
    "FileData",
    "Impossible",
    "Label",
    "Leading",
    "LineData",
    "PatchesData",
    "Shape",
    "SubspaceData",
    "as_data",
    "padded",
    "signs",
    "two_classes",
]
