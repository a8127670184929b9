"""eSpeak NG through ctypes: speech and phonemes from the library and data inside the espeakng-loader wheel.

The engine is one global object per process with hidden state: the same call gives other samples after other calls, and
its noise sources are seeded from the clock. `synthesize` therefore seeds them per utterance, and callers that need
identical output run a fixed sequence of calls in a fresh process (see `dmao.data.synthesis`).
Constants and prototypes follow speak_lib.h and espeak_ng.h of eSpeak NG 1.52.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dmao.errors import UserError

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_PHONEMES_IPA = 0x02
_RATE, _PITCH, _RANGE = 1, 3, 4
_VOICE = re.compile(r"[\w-]{1,32}(?:\+[\w -]{1,32})?")
_LONGEST_DATA_PATH = 140  # the engine keeps the path in 160 bytes and appends file names

_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The engine of this process; make one and keep it."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise UserError(
                "speech synthesis needs the package espeakng-loader: pip install espeakng-loader"
            ) from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._declare_prototypes()
        data = _short_path(espeakng_loader.get_data_path())
        self._variants = Path(data) / "voices" / "!v"
        self.sample_rate: int = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), _INITIALIZE_DONT_EXIT
        )
        if self.sample_rate <= 0:
            raise UserError(f"eSpeak NG could not read its data in {data}")
        self._samples: list[np.ndarray] = []
        self._callback = _SynthCallback(self._receive)  # kept: the engine holds a bare pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _declare_prototypes(self) -> None:
        lib, text, position = self._library, ctypes.c_char_p, ctypes.c_void_p
        lib.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, text, ctypes.c_int]
        lib.espeak_SetVoiceByName.argtypes = [text]
        lib.espeak_SetParameter.argtypes = [ctypes.c_int] * 3
        lib.espeak_SetSynthCallback.argtypes = [_SynthCallback]
        lib.espeak_SetSynthCallback.restype = None
        lib.espeak_Synth.argtypes = [
            text, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint, position, position
        ]  # fmt: skip
        lib.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(position), ctypes.c_int, ctypes.c_int]
        lib.espeak_TextToPhonemes.restype = text
        lib.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]

    def _receive(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on

    def set_voice(self, voice: str) -> None:
        """Select `voice`, a language with an optional variant: "en-us+Andy", "cs". UserError if there is none."""
        _, plus, variant = voice.partition("+")
        # A name may come with a checkpoint; to the engine it is a path. Without the variant it takes the plain voice.
        unknown = not _VOICE.fullmatch(voice) or (plus and not (self._variants / variant).is_file())
        if unknown or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(f"eSpeak NG has no voice {voice!r}")

    def synthesize(self, text: str, voice: str, *, rate: int, pitch: int, pitch_range: int, seed: int) -> np.ndarray:
        """Speak `text`: int16 samples at `self.sample_rate` (22,050 Hz).

        `rate` in words per minute, `pitch` and `pitch_range` in 0 .. 100, `seed` for the engine's noise sources.
        """
        self.set_voice(voice)
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._library.espeak_ng_SetRandSeed(seed)
        self._samples.clear()
        encoded = text.encode() + b"\0"
        status = self._library.espeak_Synth(encoded, len(encoded), 0, 1, 0, _CHARS_UTF8, None, None)
        if status != 0 or not self._samples:
            raise UserError(f"eSpeak NG could not speak {text!r} with voice {voice!r} (status {status})")
        return np.concatenate(self._samples)

    def phones(self, word: str) -> list[str]:
        """Pronounce `word` in isolation with the current voice: IPA phones without stress marks."""
        buffer = ctypes.create_string_buffer(word.encode())
        position = ctypes.c_void_p(ctypes.addressof(buffer))
        mode = _PHONEMES_IPA | ord("_") << 8  # phones joined by "_"
        clauses = []
        while position.value:
            clauses.append(self._library.espeak_TextToPhonemes(ctypes.byref(position), _CHARS_UTF8, mode).decode())
        # "(en)" marks a switch of language inside a word, "ˈ" and "ˌ" stress.
        phonemes = re.sub(r"\([\w-]+\)|[ˈˌ]", "", "_".join(clauses))
        return [phone for phone in re.split(r"[_\s]+", phonemes) if phone]


@cache
def _short_path(path: str) -> str:
    """Return `path`, or where the engine would cut it off a short link to it, which goes with the process."""
    if len(os.fsencode(path)) <= _LONGEST_DATA_PATH:
        return path
    folder = tempfile.mkdtemp(prefix="espeak-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = os.path.join(folder, "data")
    os.symlink(path, link)
    return link


def lexicon(words: list[str], voice: str = "en-us") -> dict[str, list[str]]:
    """Pronounce every word: word -> IPA phones without stress marks. UserError names a word that has no sound."""
    engine = Espeak()
    engine.set_voice(voice)
    pronunciations = {word: engine.phones(word) for word in words}
    silent = [word for word, phones in pronunciations.items() if not phones]
    if silent:
        raise UserError(f"eSpeak NG has no pronunciation for {silent[0]!r} (voice {voice!r})")
    return pronunciations
