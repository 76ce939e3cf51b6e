"""Golden transcripts: what a driver says to an instrument, line by line, and what it hears."""

from __future__ import annotations

from labrig_drivers.links import MemoryLink
from labrig_drivers.mock.instrument_server import SimulatedInstrument, run_at_once

_LINE_END = b"\n"


class Transcript:
    """A simulated instrument behind a link in memory: writes down every line, and answers otherwise where told to.

        transcript = Transcript(SimulatedKeithley2400(ResistorLoad(1e3)))
        async with Keithley2400(transcript.link) as meter:
            ...
        assert transcript.said == ["*IDN?", ":SYST:ERR?", ...]

    Args:
        instrument: What answers; no time passes for what takes time.

    Attributes:
        link: For the driver, closed.
        said: Every line that the driver sent, in order.
        heard: Every answer that it got, in order, without its line end; the bytes of a block as Latin-1.
        answers: Line by line, what is answered in place of the instrument, which then does not hear the line; None is
            no answer at all.
    """

    def __init__(self, instrument: SimulatedInstrument) -> None:
        self._instrument = instrument
        self.link = MemoryLink(self._handle, "transcript")
        self.said: list[str] = []
        self.heard: list[str] = []
        self.answers: dict[str, str | bytes | None] = {}

    def clear(self) -> None:
        """Forgets what was said and heard so far."""
        self.said.clear()
        self.heard.clear()

    def _handle(self, request: bytes) -> bytes:
        answers = b""
        for line in request.decode("ascii").splitlines():
            self.said.append(line)
            answer = self.answers[line] if line in self.answers else run_at_once(self._instrument, line)
            if answer is not None:
                data = answer if isinstance(answer, bytes) else answer.encode("latin-1") + _LINE_END
                self.heard.append(data.removesuffix(_LINE_END).decode("latin-1"))
                answers += data
        return answers
