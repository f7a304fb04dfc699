"""Small trees in exactly the published layout of data sets, filled with drawn faces.

Every fabricator makes a folder as the set's archives unpack to and returns it.
"""

import csv
import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmtl_dist.data.catalog.originals import EXPRESSIONS
from hmtl_dist.data.decode import decode
from hmtl_dist.data.drawn.face import Face
from tests.data.catalog.tools import NO_PICTURE, drawn, png, write, write_csv

scipy_io: Any = importlib.import_module("scipy.io")  # publishes no types
scipy_rotation: Any = importlib.import_module("scipy.spatial.transform")

# --- AffectNet -----------------------------------------------------------------------------------------------------

AFFECTNET_COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
    "valence",
    "arousal",
)


def affectnet_2017(folder: Path, train: int = 64, val: int = 16, side: int = 96, *, broken: bool = False) -> Path:
    """AffectNet as published in 2017: every expression equally often, faces in larger pictures.

    Args:
        folder: made, and filled.
        train: pictures of training.csv.
        val: pictures of validation.csv, which comes without a header line.
        side: pixels of the pictures.
        broken: with the entries of `AFFECTNET_BROKEN`.
    """
    rows: dict[str, list[tuple[object, ...]]] = {"training": [AFFECTNET_COLUMNS], "validation": []}
    for number in range(train + val):
        expression = number % len(EXPRESSIONS)
        one = drawn(number, EXPRESSIONS[expression], side=side)
        name = f"{number % 7 + 1}/{number:08x}.jpg"
        write(folder / "Manually_Annotated_Images" / name, one.jpeg)
        points = ";".join(f"{value:.2f}" for value in one.landmarks.ravel())
        valence, arousal = round(expression / 8 - 0.4, 4), round(0.5 - expression / 8, 4)
        rows["training" if number < train else "validation"].append(
            (name, *one.box, points, expression, valence, arousal)
        )
    if broken:
        rows["training"] += AFFECTNET_BROKEN
        pictures = folder / "Manually_Annotated_Images"
        write(pictures / "9/text.jpg", NO_PICTURE)
        write(pictures / "9/twice.jpg", (pictures / f"{train % 7 + 1}/{train:08x}.jpg").read_bytes())
        for name in ("none", "code", "nobox", "outside", "affect"):
            write(pictures / f"9/{name}.jpg", drawn(9000 + len(name), side=side).jpeg)
        twin = rows["validation"][0]
        rows["training"].append(("9/twice.jpg", *twin[1:]))
    for name, lines in rows.items():
        write_csv(folder / f"{name}.csv", lines)
    return folder


AFFECTNET_BROKEN: list[tuple[object, ...]] = [
    ("9/missing.jpg", 10, 10, 60, 60, "", 1, 0.5, 0.1),
    ("9/text.jpg", 10, 10, 60, 60, "", 1, 0.5, 0.1),
    ("9/none.jpg", 10, 10, 60, 60, "", 8, 0.5, 0.1),
    ("9/code.jpg", 10, 10, 60, 60, "", 11, 0.5, 0.1),
    ("9/nobox.jpg", "NULL", "NULL", "NULL", "NULL", "", 1, 0.5, 0.1),
    ("9/outside.jpg", 500, 10, 60, 60, "", 1, 0.5, 0.1),
    ("9/affect.jpg", 10, 10, 60, 60, "", 1, 3, 0.1),
    ("../training.csv", 10, 10, 60, 60, "", 1, 0.5, 0.1),
]


def affectnet_2021(folder: Path, train: int = 64, val: int = 16, side: int = 96) -> Path:
    """AffectNet as published in 2021: faces cut out, and labels as texts in NumPy files."""
    for number in range(train + val):
        place = folder / ("train_set" if number < train else "val_set")
        expression = number % len(EXPRESSIONS)
        one = drawn(number, EXPRESSIONS[expression], side=side)
        write(place / f"images/{number}.jpg", one.jpeg)
        (place / "annotations").mkdir(exist_ok=True)
        labels = {"exp": expression, "val": round(expression / 8 - 0.4, 4), "aro": -2}
        for ending, value in labels.items():
            np.save(place / f"annotations/{number}_{ending}.npy", np.array(str(value)))
        np.save(place / f"annotations/{number}_lnd.npy", one.landmarks.ravel())
    return folder


# --- CK+ -----------------------------------------------------------------------------------------------------------

CKPLUS_CODES = {1: "anger", 2: "contempt", 3: "disgust", 4: "fear", 5: "happy", 6: "sad", 7: "surprise"}


def ckplus(folder: Path, subjects: int = 14, sequences: int = 2, frames: int = 5, side: int = 96) -> Path:
    """CK+: sequences from neutral to an expression, one of whose people's is without a label.

    Args:
        folder: made, and filled.
        subjects: people, `S010` and so on.
        sequences: labelled sequences of each.
        frames: pictures of a sequence; the first shows neutral.
        side: pixels of the pictures, which are grey PNGs.
    """
    for subject in range(subjects):
        person = f"S{10 + subject:03d}"
        for number in range(sequences + 1):
            code = (subject * sequences + number) % 7 + 1
            place = f"{person}/{number + 1:03d}"
            (folder / "Emotion" / place).mkdir(parents=True)
            for frame in range(1, frames + 1):
                expression = "neutral" if frame == 1 else CKPLUS_CODES[code]
                # Far apart: looking for an expression from one frame on must not end at another's.
                one = drawn(subject + 100_000 * (number * frames + frame), expression, people=1000, side=side)
                stem = f"{person}_{number + 1:03d}_{frame:08d}"
                write(folder / "cohn-kanade-images" / place / f"{stem}.png", png(one.jpeg, grey=True))
                lines = [f"   {x:.7e}   {y:.7e}\n" for x, y in one.landmarks]
                write(folder / "Landmarks" / place / f"{stem}_landmarks.txt", "".join(lines))
            if number < sequences:
                stem = f"{person}_{number + 1:03d}_{frames:08d}"
                write(folder / "Emotion" / place / f"{stem}_emotion.txt", f"   {code:.7e}\n")
    return folder


# --- FER2013, FER+, RAF-DB -----------------------------------------------------------------------------------------

FER_NAMES = ("anger", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def fer2013(folder: Path, rows: int = 21) -> Path:
    """FER2013 as one table; row n shows expression n modulo seven, two thirds of the rows are for training."""
    lines: list[tuple[object, ...]] = [("emotion", "pixels", "Usage")]
    for number in range(rows):
        grey = np.array(Image.open(io.BytesIO(drawn(number, side=48).jpeg)).convert("L"))
        usage = "Training" if number % 3 < 1 or number < rows // 2 else ("PublicTest", "PrivateTest")[number % 2]
        lines.append((number % 7, " ".join(map(str, grey.ravel())), usage))
    write_csv(folder / "fer2013.csv", lines)
    return folder


FERPLUS_COLUMNS = (
    *("Usage", "Image name", "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    *("unknown", "NF"),
)


def ferplus(folder: Path, rows: int = 21) -> Path:
    """FER+ beside FER2013: eight of ten votes for column n modulo eight, one stray vote, one for unknown."""
    fer2013(folder, rows)
    lines: list[tuple[object, ...]] = [FERPLUS_COLUMNS]
    with (folder / "fer2013.csv").open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            votes = [0] * 10
            votes[number % 8] += 8
            votes[(number + 1) % 8] += 1
            votes[8] += 1
            lines.append((row["Usage"], f"fer{number:07d}.png", *votes))
    write_csv(folder / "fer2013new.csv", lines)
    return folder


def fer2013_folders(folder: Path, per_class: int = 2) -> Path:
    for place, split in enumerate(("train", "test")):
        for label, name in enumerate(("angry", *FER_NAMES[1:])):
            for number in range(per_class):
                one = drawn(1000 * place + 10 * label + number, side=48)
                write(folder / split / name / f"im{number}.jpg", one.jpeg)
    return folder


def rafdb(folder: Path, train: int = 14, test: int = 7, *, attributes: bool = True) -> Path:
    """RAF-DB; picture n shows expression n modulo seven."""
    lines: list[str] = []
    for number in range(train + test):
        stem = f"train_{number + 1:05d}" if number < train else f"test_{number - train + 1:04d}"
        one = drawn(number)
        lines.append(f"{stem}.jpg {number % 7 + 1}\n")
        write(folder / f"basic/Image/aligned/{stem}_aligned.jpg", one.jpeg)
        write(folder / f"basic/Image/original/{stem}.jpg", drawn(number, side=128).jpeg)
        left, top, width, height = drawn(number, side=128).box
        box = f"{left}.5 {top}.0 {left + width}.5 {top + height}.0 \n"
        write(folder / f"basic/Annotation/boundingbox/{stem}_boundingbox.txt", box)
        if attributes:
            points = "".join(f"{x:.3f}\t{y:.3f}\n" for x, y in one.landmarks[:5])
            text = f"{points}{number % 3}\n{number % 3}\n{number % 5}\n"
            write(folder / f"basic/Annotation/manual/{stem}_manu_attri.txt", text)
    write(folder / "basic/EmoLabel/list_patition_label.txt", "".join(lines))
    return folder


# --- age, gender, smile --------------------------------------------------------------------------------------------


def utkface(folder: Path, pictures: int = 10) -> Path:
    for number in range(pictures):
        name = f"{20 + number}_{number % 2}_{number % 5}_2017010917{number:07d}.jpg.chip.jpg"
        write(folder / "UTKFace" / name, drawn(number).jpeg)
    return folder


def genki4k(folder: Path, pictures: int = 10) -> Path:
    lines: list[str] = []
    for number in range(pictures):
        write(folder / f"files/file{number + 1:04d}.jpg", drawn(number).jpeg)
        lines.append(f"{number % 2} {number / 10:.6f} -0.100000 0.050000\n")
    write(folder / "labels.txt", "".join(lines))
    return folder


def fairface(folder: Path, train: int = 8, val: int = 4) -> Path:
    ages, races = ("20-29", "more than 70"), ("East Asian", "Latino_Hispanic")
    for split, count in (("train", train), ("val", val)):
        rows: list[tuple[object, ...]] = [("file", "age", "gender", "race", "service_test")]
        for number in range(count):
            write(folder / f"{split}/{number + 1}.jpg", drawn(number + 100 * (split == "val")).jpeg)
            rows.append(
                (f"{split}/{number + 1}.jpg", ages[number % 2], ("Male", "Female")[number % 2], races[number % 2], True)
            )
        write_csv(folder / f"fairface_label_{split}.csv", rows)
    return folder


CELEBA_ATTRIBUTES = ("5_o_Clock_Shadow", "Male", "Smiling", "Young")


def celeba(folder: Path, pictures: int = 12) -> Path:
    """CelebA with four of its forty attributes; three pictures a person, four people."""
    names = [f"{number + 1:06d}.jpg" for number in range(pictures)]
    attributes, boxes = (
        [f"{pictures}\n", " ".join(CELEBA_ATTRIBUTES) + " \n"],
        [f"{pictures}\n", "image_id x_1 y_1 width height\n"],
    )
    people, partition = "", ""
    for number, name in enumerate(names):
        one = drawn(number, side=128)
        write(folder / "Img/img_align_celeba" / name, drawn(number).jpeg)
        write(folder / "Img/img_celeba" / name, one.jpeg)
        attributes.append(f"{name} -1  {1 if number % 2 else -1} -1  1\n")
        boxes.append(f"{name}    {'  '.join(map(str, one.box))}\n")
        people += f"{name} {2880 + number // 3}\n"
        partition += f"{name} {min(number // 3, 2)}\n"
    write(folder / "Anno/list_attr_celeba.txt", "".join(attributes))
    write(folder / "Anno/list_bbox_celeba.txt", "".join(boxes))
    write(folder / "Anno/identity_CelebA.txt", people)
    write(folder / "Eval/list_eval_partition.txt", partition)
    return folder


def class_folders(folder: Path, splits: Sequence[str] = ("train", "valid")) -> Path:
    for place, split in enumerate(splits or ("",)):
        for label, name in enumerate(("calm", "glad")):
            for number in range(5):
                one = drawn(100 * place + 10 * label + number)
                write(folder / split / name / f"{number}.jpg", one.jpeg)
    return folder


# --- head pose -----------------------------------------------------------------------------------------------------


def write_mat(file: Path, entries: Mapping[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    scipy_io.savemat(str(file), dict(entries))


def pose_para(face: Face) -> NDArray[np.float64]:
    """`Pose_Para` of a drawn face: pitch, yaw to the left, roll clockwise, in radians, then what else stands in it."""
    angles = np.radians([face.pitch, -face.yaw, -face.roll])
    return np.concatenate([angles, [120.0, 110.0, -66.0, 1e-3]])[None]


def w300lp(folder: Path, faces: int = 3, renderings: int = 2) -> Path:
    for part in ("AFW", "HELEN"):
        for flip in ("", "_Flip"):
            for number in range(faces * renderings):
                one = drawn(number + 100 * (part == "HELEN") + 1000 * bool(flip))
                stem = folder / f"300W_LP/{part}{flip}/{part}_1{number // renderings}_1_{number % renderings}"
                write(stem.with_suffix(".jpg"), one.jpeg)
                roi = np.array([[1, 2, 90, 91]])
                entries = {"Pose_Para": pose_para(one.face), "pt2d": one.landmarks.T, "roi": roi}
                write_mat(stem.with_suffix(".mat"), entries)
    write(folder / "300W_LP/Code/README.txt", "not read")
    return folder


def aflw2000(folder: Path, pictures: int = 6) -> Path:
    for number in range(pictures):
        one = drawn(number)
        stem = folder / f"AFLW2000/image{number + 2:05d}"
        write(stem.with_suffix(".jpg"), one.jpeg)
        points = np.concatenate([one.landmarks.T, np.zeros((1, 68))])
        hidden = np.full((2, 21), -1.0)
        write_mat(stem.with_suffix(".mat"), {"Pose_Para": pose_para(one.face), "pt3d_68": points, "pt2d": hidden})
    return folder


BIWI_CALIBRATION = """517.679 0 320
0 517.679 240.5
0 0 1

0 0 0 0

0.999947 0.00432361 0.00929419
-0.00446314 0.999877 0.0150443
-0.009228 -0.015085 0.999844

-24.0198 5.8896 -13.2308

640 480
"""


def biwi_rotation(yaw: float, pitch: float, roll: float) -> NDArray[np.float64]:
    """The published rotation of a face with these angles in our convention, composed by SciPy.

    Camera: x right, y down, z away. A turn about x by a takes the nose (along -z) to y = sin(a), so up is negative a.
    """
    rotation: Any = scipy_rotation.Rotation.from_euler("XYZ", [-pitch, -yaw, -roll], degrees=True)
    return rotation.as_matrix()


def biwi(folder: Path, sequences: Sequence[str] = ("01", "03", "15"), frames: int = 3) -> Path:
    for place, sequence in enumerate(sequences):
        write(folder / f"hpdb/{sequence}/rgb.cal", BIWI_CALIBRATION)
        for frame in range(frames):
            one = drawn(10 * place + frame, side=256)
            canvas = Image.new("RGB", (640, 480))
            canvas.paste(Image.fromarray(decode(one.jpeg)), (192, 112))
            buffer = io.BytesIO()
            canvas.save(buffer, "PNG")
            stem = f"hpdb/{sequence}/frame_{frame + 3:05d}"
            write(folder / f"{stem}_rgb.png", buffer.getvalue())
            rotation = biwi_rotation(one.face.yaw, one.face.pitch, one.face.roll)
            lines = [" ".join(f"{value:.8f}" for value in row) + " \n" for row in rotation]
            write(folder / f"{stem}_pose.txt", "".join([*lines, "\n", "24.02 -5.9 900 \n"]))
    return folder


TREES: dict[str, Callable[[Path], Path]] = {
    "300w-lp": w300lp,
    "affectnet": affectnet_2017,
    "aflw2000": aflw2000,
    "biwi": biwi,
    "celeba": celeba,
    "ckplus": ckplus,
    "fairface": fairface,
    "fer2013": fer2013,
    "ferplus": ferplus,
    "folder": class_folders,
    "genki4k": genki4k,
    "rafdb": rafdb,
    "utkface": utkface,
}
"""A fabricator for every set that is made from something."""
