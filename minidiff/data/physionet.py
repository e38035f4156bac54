"""The intensive-care data of the PhysioNet challenge of 2012, where a reader has downloaded it."""

from __future__ import annotations

from pathlib import Path

import torch

from .series import Windows

HOURS = 48
ICU_CHANNELS = (
    "ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine", "DiasABP",
    "FiO2", "GCS", "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "MAP", "Mg", "NIDiasABP",
    "NIMAP", "NISysABP", "Na", "PaCO2", "PaO2", "Platelets", "RespRate", "SaO2", "SysABP", "Temp",
    "TroponinI", "TroponinT", "Urine", "WBC", "pH",
)  # fmt: skip


def physionet2012(folder: str | Path) -> Windows:
    """Read the first 48 hours of some 4,000 patients in intensive care: 35 channels, 80 % missing.

    An hour's value is the last one that was noted in it. Records without any of the 35 measurements
    are left out (a handful hold the patient's age and no more).

    Args:
        folder: The unpacked ``set-a``, a folder of ``RECORD.txt`` files. It is not part of a pip
            package: download ``set-a.zip`` from physionet.org/content/challenge-2012/1.0.0 and
            unpack it.

    Returns:
        Values in their units, float32, shape ``(patients, 48, 35)``, channels in the order of
        ``ICU_CHANNELS``, NaN where nothing was noted; ``when`` counts hours from admission.

    Raises:
        FileNotFoundError: if the folder holds no such files.
        ValueError: if a file is not of this form.

    Source: Silva et al. (2012); the choice of channels is that of Tashiro et al. (2021).
    """
    files = sorted(Path(folder).glob("[0-9]*.txt"))
    if not files:
        raise FileNotFoundError(
            f"folder={str(folder)!r} holds no RECORD.txt: download set-a.zip from "
            "https://physionet.org/content/challenge-2012/1.0.0 and give the unpacked folder set-a"
        )
    patients = [_patient(path) for path in files]
    values = torch.stack(patients)
    values = values[~values.isnan().flatten(1).all(1)]
    if not len(values):
        raise ValueError(f"folder={str(folder)!r} holds records, but not one value of the 35")
    return Windows(values, ~values.isnan(), torch.arange(HOURS).expand(len(values), HOURS))


def _patient(path: Path) -> torch.Tensor:
    table = torch.full((HOURS, len(ICU_CHANNELS)), float("nan"))
    head, *lines = path.read_text().splitlines() or [""]
    if head.strip() != "Time,Parameter,Value":
        raise ValueError(f"{path.name} begins with {head[:40]!r}: it is no record of the challenge")
    for line in lines:
        try:
            time, name, value = line.split(",")
            hour, number = int(time.split(":")[0]), float(value)
        except ValueError:
            raise ValueError(
                f"{path.name} holds the line {line[:40]!r}: the file is damaged"
            ) from None
        if name in ICU_CHANNELS and hour < HOURS:
            table[hour, ICU_CHANNELS.index(name)] = number
    return table
