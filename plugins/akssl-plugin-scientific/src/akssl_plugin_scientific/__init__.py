"""Decoders of scientific images for akssl: `tiff` and `dicom`. Each is a module of its own, imported when asked for."""
