"""Recordings: one run, one file, nothing acknowledged is ever lost. The only modules that import h5py."""

from labrig.plans.base import StreamCapacity
from labrig.recording.file import Durability
from labrig.recording.header import RecordingHeader
from labrig.recording.joining import read_mvms
from labrig.recording.mvms import MvmBlock
from labrig.recording.reader import Recording
from labrig.recording.summary import RecordingSummary, SupplyTrace
from labrig.recording.writer import RecordingWriter

__all__ = [
    "Durability",
    "MvmBlock",
    "Recording",
    "RecordingHeader",
    "RecordingSummary",
    "RecordingWriter",
    "StreamCapacity",
    "SupplyTrace",
    "read_mvms",
]
