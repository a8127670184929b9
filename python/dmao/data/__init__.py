"""Speech data: corpora, features, labels and batches.

    embedded.prepare_embedded    synthetic English, made on the spot, bit-identical anywhere
    recorded.prepare_recorded    recorded Czech and Dutch, fetched from Debian
    disk.prepare_from_disk       corpora that lie on disk (dmao.recipes), from their own formats
    corpus.Corpus                what each of them leaves on disk, read through lhotse
    labels.Labels                text <-> label ids (characters, phonemes, pieces of words)
    loader.SpeechDataset, loader.batches    padded batches of normalised features

Nothing is imported here: the synthesis workers are fresh interpreters that must start fast and without torch.
"""

FRAME_SHIFT = 0.01  # seconds from one frame of features to the next
LONGEST = 1e6  # seconds, eleven days: of a recording, and whatever lies in one; more fits into no memory
