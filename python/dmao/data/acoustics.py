"""What happens between mouth and recorder: a room, noise, a gain. Everything in fp64, rounded to 16 bits at the end.

fp64 keeps the result independent of the order in which SIMD code sums: the last bit of a double decides over one
16-bit sample in about 10^11.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import resample_poly

SAMPLE_RATE = 16_000
_SPEECH_LEVEL = 0.005  # of full scale: what is quieter at either end counts as silence
_MARGIN = SAMPLE_RATE // 10  # silence kept at either end
_NOISE_EXPONENT = {"white": 0.0, "pink": 0.5, "brown": 1.0}  # amplitude ~ frequency ** -exponent


def record(speech: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Turn dry speech (int16) into a recording at 16 kHz (int16).

    Half of the utterances get a room, three quarters white, pink or brown noise at 8 .. 28 dB, all a random gain
    (peak at -14 .. -1 dB of full scale).
    """
    signal = trim(resample(speech / 32768.0, sample_rate))
    if rng.random() < 0.5:
        signal = convolve(signal, room_response(rng))
    colour = rng.choice(["none", *_NOISE_EXPONENT])
    if colour != "none":
        signal = signal + noise(len(signal), str(colour), rng) * rms(signal) / decibels(rng.uniform(8, 28))
    peak = decibels(rng.uniform(-14, -1))
    return np.round(signal * (32767 * peak / np.abs(signal).max())).astype(np.int16)


def resample(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """Bring `signal` from `sample_rate` to 16 kHz."""
    divisor = np.gcd(SAMPLE_RATE, sample_rate)
    return resample_poly(signal, SAMPLE_RATE // divisor, sample_rate // divisor)


def decibels(level: float) -> float:
    """Amplitude ratio of a level in dB."""
    return float(10 ** (level / 20))


def rms(signal: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(signal**2)))


def trim(signal: np.ndarray) -> np.ndarray:
    """Cut silence at both ends down to 0.1 s."""
    loud = np.flatnonzero(np.abs(signal) > _SPEECH_LEVEL)
    return signal[max(0, loud[0] - _MARGIN) : loud[-1] + _MARGIN] if len(loud) else signal


def room_response(rng: np.random.Generator) -> np.ndarray:
    """Draw a room impulse response: the direct sound, then noise that decays by 60 dB within 0.1 .. 0.5 s."""
    reverberation_time = rng.uniform(0.1, 0.5)
    time = np.arange(int(SAMPLE_RATE * reverberation_time)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * np.exp(-np.log(1000) * time / reverberation_time)
    tail[time < 0.002] = 0.0
    response = tail * decibels(rng.uniform(-12, -2)) / np.sqrt(np.sum(tail**2))
    response[0] = 1.0
    return response


def convolve(signal: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve by FFT and keep the length of `signal`."""
    size = 1 << (len(signal) + len(response) - 2).bit_length()
    return np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(response, size), size)[: len(signal)]


def noise(length: int, colour: str, rng: np.random.Generator) -> np.ndarray:
    """Draw `length` samples of white, pink or brown noise with RMS 1 (flat below 20 Hz)."""
    size = 1 << (length - 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 20.0)
    coloured = np.fft.irfft(spectrum * frequency ** -_NOISE_EXPONENT[colour], size)[:length]
    return coloured / rms(coloured)
