"""UTKFace: labels in names."""

from pathlib import Path

from tests.data.catalog.fabricate import utkface
from tests.data.catalog.tools import NO_PICTURE, built, drawn, reasons, refs_of, write


def test_names_are_read(tmp_path: Path) -> None:
    refs = refs_of("utkface", utkface(tmp_path))
    assert refs["23_1_3_20170109170000003.jpg.chip.jpg"].labels == {"age": 23.0, "gender": "female", "race": "Indian"}


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    source = utkface(tmp_path / "src")
    for name in ("39_1_20170116174525125.jpg.chip.jpg", "200_1_0_20170116174525125.jpg.chip.jpg", "5_2_0_20170116.jpg"):
        write(source / "UTKFace" / name, drawn(50).jpeg)
    write(source / "UTKFace/30_0_0_20170116174525127.jpg.chip.jpg", NO_PICTURE)
    write(source / "UTKFace/31_0_0_20170116174525128.jpg.chip.jpg", drawn(0).jpeg)
    write(source / "UTKFace/._31_0_0_20170116174525128.jpg.chip.jpg", NO_PICTURE)
    assert reasons(built("utkface", source, tmp_path / "out")) == {
        "200_1_0_20170116174525125.jpg.chip.jpg": "age is 200, not 0 to 116",
        "39_1_20170116174525125.jpg.chip.jpg": "the name does not begin with AGE_GENDER_RACE_DATE",
        "5_2_0_20170116.jpg": "the name does not begin with AGE_GENDER_RACE_DATE",
        "31_0_0_20170116174525128.jpg.chip.jpg": "the same picture as 20_0_0_20170109170000000.jpg.chip.jpg, which has "
        "other labels",
        "30_0_0_20170116174525127.jpg.chip.jpg": "no picture that can be decoded",
    }
