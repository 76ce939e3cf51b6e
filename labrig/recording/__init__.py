"""Recordings: one run, one file, nothing acknowledged is ever lost. The only modules that import h5py."""

from labrig.plans.base import StreamCapacity
from labrig.recording.file import Durability
from labrig.recording.header import RecordingHeader
from labrig.recording.reader import Recording, RecordingSummary, SupplyTrace, read_mvms
from labrig.recording.writer import RecordingWriter

__all__ = [
    "Durability",
    "Recording",
    "RecordingHeader",
    "RecordingSummary",
    "RecordingWriter",
    "StreamCapacity",
    "SupplyTrace",
    "read_mvms",
]
