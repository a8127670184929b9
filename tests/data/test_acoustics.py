import numpy as np
import pytest
from dmao.data import acoustics


def rng(seed=0):
    return np.random.default_rng(seed)


def test_recording_is_16_bit_and_decided_by_the_seed():
    speech = (8000 * np.sin(np.arange(22050) / 20)).astype(np.int16)
    first, same, other = (acoustics.record(speech, 22050, rng(seed)) for seed in (3, 3, 4))
    assert first.dtype == np.int16
    assert len(first) == pytest.approx(16000, abs=3300)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    peaks = [np.abs(acoustics.record(speech, 22050, rng(seed))).max() / 32767 for seed in range(40)]
    assert min(peaks) >= acoustics.decibels(-14) - 1e-4
    assert max(peaks) <= acoustics.decibels(-1) + 1e-4


def test_silence_at_the_ends_is_cut():
    signal = np.zeros(16000)
    signal[5000:6000] = 0.5
    assert len(acoustics.trim(signal)) == 1600 + 999 + 1600
    assert len(acoustics.trim(np.zeros(100))) == 100


@pytest.mark.parametrize(("colour", "slope"), [("white", 0), ("pink", -3), ("brown", -6)])
def test_noise_has_its_slope(colour, slope):
    """Power falls by 0, 3 or 6 dB per octave."""
    noise = acoustics.noise(1 << 17, colour, rng())
    assert acoustics.rms(noise) == pytest.approx(1)
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [10 * np.log10(power[1 << k : 2 << k].mean()) for k in range(10, 16)]
    assert np.polyfit(range(6), octaves, 1)[0] == pytest.approx(slope, abs=0.2)


def test_room_keeps_direct_sound_and_decays():
    response = acoustics.room_response(rng())
    assert response[0] == 1
    quarter = len(response) // 4
    assert acoustics.rms(response[-quarter:]) < 0.05 * acoustics.rms(response[40:quarter])


def test_convolution():
    signal, response = rng(1).standard_normal(300), rng(2).standard_normal(70)
    assert np.allclose(acoustics.convolve(signal, response), np.convolve(signal, response)[:300])
    assert np.allclose(acoustics.convolve(signal, np.ones(1)), signal)
