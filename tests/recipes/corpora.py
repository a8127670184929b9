"""Small corpora in the exact formats of LibriSpeech, TED-LIUM release 2 and Switchboard: what a disk would hold.

Speech is a sequence of tones, one a letter, so that the files are made in no time and a model could learn them.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import soundfile

WORDS = ("hello", "world", "seven", "green", "apple", "river", "music", "door")
PHONES = {
    "hello": "HH AH L OW",
    "world": "W ER L D",
    "seven": "S EH V AH N",
    "green": "G R IY N",
    "apple": "AE P AH L",
    "river": "R IH V ER",
    "music": "M Y UW Z IH K",
    "door": "D AO R",
}
PAUSE = 0.2


def sentence(number: int) -> str:
    """Two to four words."""
    return " ".join(random.Random(number).choices(WORDS, k=2 + number % 3))


def speech(text: str, sample_rate: int) -> np.ndarray:
    """0.1 s of a tone for each letter, with a little noise."""
    time = np.arange(sample_rate // 10) / sample_rate
    tones = [np.sin(2 * np.pi * (150 + 110 * (ord(letter) % 32)) * time) for letter in text]
    noise = np.random.default_rng(len(text)).standard_normal(len(text) * len(time))
    return 0.3 * np.concatenate(tones) + 0.005 * noise


def conversation(texts: list[str], sample_rate: int) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """One channel with all texts, pauses between them, and (start, end) of each in seconds."""
    pause = np.zeros(int(PAUSE * sample_rate))
    channel, places = [pause], []
    for text in texts:
        start = sum(map(len, channel)) / sample_rate
        channel += [speech(text, sample_rate), pause]
        places.append((start, start + len(channel[-2]) / sample_rate))
    return np.concatenate(channel), places


def librispeech(folder: Path, parts: dict[str, int]) -> Path:
    """`parts`: folder -> utterances, in two chapters of one speaker each."""
    number = 0
    for speaker, (part, utterances) in enumerate(parts.items(), start=100):
        for chapter in (1, 2):
            place = folder / part / str(speaker) / str(chapter)
            place.mkdir(parents=True)
            lines = []
            for index in range(utterances // 2):
                id, text = f"{speaker}-{chapter}-{index:04d}", sentence(number)
                soundfile.write(place / f"{id}.flac", speech(text, 16_000), 16_000)
                lines.append(f"{id} {text.upper()}\n")
                number += 1
            (place / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return folder


def lexicon(path: Path) -> Path:
    """As LibriSpeech's: capitals, stress, variants in lines of their own."""
    stressed = {word.upper(): phones.replace("ER", "ER0").replace("IY", "IY1") for word, phones in PHONES.items()}
    path.write_text("".join(f"{word}\t{phones}\n" for word, phones in stressed.items()) + "DOOR\tD UH1 R\n")
    return path


def tedlium2(folder: Path, talks: dict[str, list[str]] | None = None) -> Path:
    """`talks`: split -> names of talks, of four segments each, with the marks of the corpus and a gap."""
    talks = talks or {"train": ["AnnA_2009", "BoB_2010"], "dev": ["CarL_2011"], "test": ["DorA_2012"]}
    number = 0
    for split, names in talks.items():
        (folder / split / "sph").mkdir(parents=True)
        (folder / split / "stm").mkdir()
        for name in names:
            texts = [sentence(number + index) for index in range(4)]
            number += 4
            samples, places = conversation(texts, 16_000)
            soundfile.write(folder / split / "sph" / f"{name}.sph", samples, 16_000, format="NIST", subtype="PCM_16")
            written = [texts[0], f"<sil> {texts[1]}(2) {{NOISE}}", f"{texts[2]} <unk>", texts[3]]
            lines = [";; comment\n", f"{name} 1 {name} 0.00 0.20 <o,f0,unknown> ignore_time_segment_in_scoring\n"]
            for text, (start, end) in zip(written, places, strict=True):
                lines.append(f"{name} 1 {name} {start:.2f} {end:.2f} <o,f0,female> {text}\n")
            (folder / split / "stm" / f"{name}.stm").write_text("".join(lines))
    entries = [f"{word} {phones}\n" for word, phones in PHONES.items()] + ["door(2) D UH R\n"]
    (folder / "TEDLIUM.152k.dic").write_text("".join(entries))
    return folder


def telephone(path: Path, sides: list[list[str]]) -> list[list[tuple[float, float]]]:
    """A two-channel mu-law file at 8 kHz; places of the texts of both sides."""
    made = [conversation(texts, 8_000) for texts in sides]
    channels = np.zeros((max(len(samples) for samples, _ in made), 2))
    for channel, (samples, _) in enumerate(made):
        channels[: len(samples), channel] = samples
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, channels, 8_000, format="NIST", subtype="ULAW")
    return [places for _, places in made]


def switchboard(folder: Path, conversations: tuple[int, ...] = (2001, 2005)) -> Path:
    """swb1_d1/data/sw02001.sph and swb_ms98_transcriptions/20/2001/sw2001A-ms98-a-trans.text, with all its marks."""
    number = 0
    for conversation_id in conversations:
        sides = [[sentence(number + 4 * side + index) for index in range(4)] for side in (0, 1)]
        number += 8
        places = telephone(folder / "swb1_d1" / "data" / f"sw0{conversation_id}.sph", sides)
        place = folder / "swb_ms98_transcriptions" / str(conversation_id)[:2] / str(conversation_id)
        place.mkdir(parents=True)
        for side, texts, marks in zip("AB", sides, places, strict=True):
            name = f"sw{conversation_id}{side}-ms98-a"
            first, *rest = texts[0].split()
            written = [
                " ".join([f"[laughter-{first}]", *rest, "[noise]"]),
                f"t[o]- {texts[1]}_1",
                f"<b_aside> {texts[2]} [vocalized-noise] <e_aside>",
                f"[{texts[3].split()[0]}/isn't] {' '.join(texts[3].split()[1:])} [laughter]",
            ]
            rows = [(0.0, marks[0][0], "[silence]")]
            for text, (start, end) in zip(written, marks, strict=True):
                rows += [(start, end, text)]
            lines = [f"{name}-{i:04d} {start:.6f} {end:.6f} {text}\n" for i, (start, end, text) in enumerate(rows, 1)]
            (place / f"{name}-trans.text").write_text("".join(lines))
    entries = "".join(f"{word}\t{phones.lower()}\n" for word, phones in PHONES.items())
    dictionary = folder / "swb_ms98_transcriptions" / "sw-ms98-dict.text"
    dictionary.write_text(f"# words\n\n[silence]\tsil\n{entries}t[o]-\tt\n")
    return folder


def hub5(folder: Path, recordings: tuple[str, ...] = ("sw_4390", "en_4156")) -> Path:
    """english/NAME.sph, reference/hub5.english.stm with NIST's marks, and a .glm."""
    lines = [';; LABEL "O" "Overall"\n']
    for number, name in enumerate(recordings):
        sides = [[sentence(100 + 4 * number + 2 * side + index) for index in range(2)] for side in (0, 1)]
        places = telephone(folder / "english" / f"{name}.sph", sides)
        for side, texts, marks in zip("AB", sides, places, strict=True):
            label = "<O,en,F,en-F>"
            lines.append(f"{name} {side} inter_segment_gap 0.00 {marks[0][0]:.2f} {label}\n")
            for text, (start, end) in zip(texts, marks, strict=True):
                first, *rest = text.split()
                words = f"(%hesitation) {{{first} / {first}s}} {' '.join(rest)} (wh-)"
                lines.append(f"{name} {side} {name}_{side} {start:.2f} {end:.2f} {label} {words}\n")
    (folder / "reference").mkdir(parents=True)
    (folder / "reference" / "hub5.english.stm").write_text("".join(lines))
    (folder / "reference" / "en2000.glm").write_text(";; rules\n[it's] => [it is]\n")
    return folder
