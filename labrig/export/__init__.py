"""Recordings as netCDF, CSV, Parquet or NumPy files."""

from labrig.export.run import FORMATS, export_recording, format_of

__all__ = ["FORMATS", "export_recording", "format_of"]
