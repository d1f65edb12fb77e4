"""Scientific images that stock libraries write."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def write_dicom():
    """Write one gray or colour image as DICOM."""

    def write(path, pixels, **elements):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = pydicom.Dataset()
        data.file_meta, data.SOPClassUID = meta, CTImageStorage
        data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        colour = pixels.ndim == 3 and pixels.shape[-1] == 3
        data.Rows, data.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
        data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
        if colour:
            data.PlanarConfiguration = 0
        data.BitsAllocated = data.BitsStored = pixels.itemsize * 8
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes()
        for name, value in elements.items():
            setattr(data, name, value)
        path.parent.mkdir(parents=True, exist_ok=True)
        data.save_as(path, enforce_file_format=True)
        return path

    return write
