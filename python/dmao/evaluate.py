"""How good a model is on a split: cross-entropy, and error rates with and without a lexicon."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmao import checkpoint
from dmao.config import ModelConfig, TrainConfig
from dmao.distributed import device_of
from dmao.models import ConformerCTC, ctc_loss
from dmao.progress import bar
from dmao.source import Source, require_same_rate, saved_source
from dmao.step import autocast, elastic_of, restore
from dmao.widths import require_same_components

if TYPE_CHECKING:
    from dmao.data.labels import Labels
    from dmao.data.loader import Batch


@dataclass(frozen=True)
class Evaluation:
    """Results on one split; error rates in percent.

    Against the plain references, word by word: where these leave noises out, as Switchboard's do, and the labels have
    some, every noise that is heard is an insertion. `dmao decode --drop` leaves them out.

    ce: CTC loss per label, in nats, of the utterances that the labels spell and that have an alignment.
    cer: character error rate of the greedy path; with phonemes as labels, the phoneme error rate, without utterances
        that the labels cannot spell.
    wer: word error rate of lexicon decoding (any word may follow any other, all equally likely).
    wer_greedy: word error rate of the greedy path; None with phonemes, which spell no words.
    utterances, left_out: how many were scored, and how many of these the model cannot process: too short, or
        more labels than frames. Their words count as deleted.
    words, labels: in the references.
    """

    ce: float
    cer: float
    wer: float
    wer_greedy: float | None
    substitutions: int
    insertions: int
    deletions: int
    words: int
    labels: int
    utterances: int
    left_out: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"cross-entropy {self.ce:.3f}, CER {self.cer:.1f} %, WER {self.wer:.1f} % "
            f"({self.words} words in {self.utterances} utterances)"
        )


def load_model(path: str | Path) -> ConformerCTC:
    """The trained model of a checkpoint or of a run directory's newest usable one, in evaluation mode.

    It is in tight storage, whatever it was trained in, so that `dmao_kernels.compact` takes it.
    """
    model, _, controller, _ = restore(load_checkpoint(path))
    if controller is not None and controller.elastic.storage == "slots":
        controller.elastic.to_tight()
    return model.eval()


def load_widths(path: str | Path, wanted: ModelConfig | None = None) -> dict[str, int]:
    """The number of components of every elastic module of a checkpoint, or of a run directory's newest usable one.

    wanted: the model that is to have them; raises ConfigError where its modules or their components are others.
    """
    model, _, controller, config = restore(load_checkpoint(path))
    if wanted is not None:
        require_same_components(wanted, config.model)
    return elastic_of(model, controller, config).counts()


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint, or in the newest usable one of a run directory. Raises CheckpointError."""
    return find_checkpoint(path)[1]


def find_checkpoint(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """File and state of a checkpoint, or of the newest usable one of a run directory. Raises CheckpointError."""
    path = Path(path)
    if not path.is_dir():
        return path, checkpoint.load(path)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = checkpoint.load_latest(folder)
    if found is None:
        raise checkpoint.CheckpointError(f"checkpoint: there is none in {path}")
    return found


def evaluate(path: str | Path, split: str = "test", data: Source | None = None, root: str | None = None) -> Evaluation:
    """Evaluates a checkpoint, or the newest usable one of a run directory.

    data: a source of batches; None opens the corpus of the checkpoint's config, in `root` if that is given.

    Raises CheckpointError and UserError where there is nothing to evaluate or nothing to evaluate on.
    """
    model, data, config = open_checkpoint(load_checkpoint(path), data, root)
    return evaluate_model(model, data, split, config.precision)


def open_checkpoint(
    state: Mapping[str, Any], data: Source | None = None, root: str | None = None
) -> tuple[ConformerCTC, Source, TrainConfig]:
    """Model, data and config of a checkpoint's state, with the labels in it; arguments as of `evaluate`.

    Sets the number of threads that the config asks for. Raises UserError for data of another sample rate.
    """
    with checkpoint.used(state):
        values = state["config"]
        if root is not None:
            values = {**values, "data": {**values["data"], "root": root}}
        config = TrainConfig.from_dict(values)
        data = data or saved_source(state, config)
        require_same_rate(state, data)
    torch.set_num_threads(config.threads)
    device = device_of("cpu" if config.device == "cpu" else "auto")  # not only where it was trained
    return restore(state)[0].to(device), data, config


def evaluate_model(model: ConformerCTC, source: Source, split: str = "test", precision: str = "fp32") -> Evaluation:
    """Evaluates `model` as it is; afterwards it is in the mode (training or not) that it was in before.

    Raises UserError where the source has no such split, or nothing in it.
    """
    from dmao.decode import LexiconDecoder, greedy
    from dmao.scoring import wer

    left_out = source.left_out(split)
    texts, lost = [utterance.text for utterance in left_out], [""] * len(left_out)
    labels, decoder = source.labels, LexiconDecoder(source.labels, source.words)
    paths, words = list(lost), list(lost)
    loss = aligned = 0.0
    for batch, log_probs, lengths in outputs(model, bar(source.eval_batches(split), split, "batch"), precision):
        spelled = batch.target_lengths > 0
        if spelled.any():
            mean, count, _ = ctc_loss(
                log_probs[spelled], lengths[spelled], batch.targets, batch.target_lengths[spelled]
            )
            loss, aligned = loss + count * mean.item(), aligned + count
        texts += batch.texts
        for frames, length in zip(log_probs, lengths.tolist(), strict=True):
            paths.append(greedy(frames[:length], labels))
            words.append(decoder.decode(frames[:length]))
    found = wer(texts, words)
    by_label, by_word = _greedy_errors(labels, texts, paths)
    return Evaluation(
        ce=loss / aligned if aligned else float("nan"),
        cer=by_label[0],
        wer=found.percent,
        wer_greedy=by_word,
        substitutions=found.substitutions,
        insertions=found.insertions,
        deletions=found.deletions,
        words=found.reference,
        labels=by_label[1],
        utterances=len(texts),
        left_out=len(left_out),
    )


@torch.no_grad()
def outputs(
    model: ConformerCTC, batches: Iterable[Batch], precision: str = "fp32"
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """(batch, log-probabilities, their lengths) of every batch, of `model` in evaluation mode."""
    training = model.training
    model.eval()
    try:
        for batch in batches:
            features = batch.features.to(next(model.parameters()).device)
            with autocast(precision, features.device):
                log_probs, lengths = model(features, batch.feature_lengths)
            yield batch, log_probs.cpu(), lengths
    finally:
        model.train(training)


def _greedy_errors(labels: Labels, texts: list[str], paths: list[str]) -> tuple[tuple[float, int], float | None]:
    """(percent, number) of label errors, and percent of word errors where labels spell words."""
    from dmao.scoring import cer, wer

    if labels.kind != "phonemes":
        errors = cer(texts, paths)
        return (errors.percent, errors.reference), wer(texts, paths).percent
    spelled = [(_spelling(labels, text), path) for text, path in zip(texts, paths, strict=True)]
    # as "words" of a text: the boundaries are not sounds
    pairs = [(text.replace("|", " "), path.replace("|", " ")) for text, path in spelled if text is not None]
    errors = wer([text for text, _ in pairs], [path for _, path in pairs])
    return (errors.percent, errors.reference), None


def _spelling(labels: Labels, text: str) -> str | None:
    from dmao.data.labels import Unspellable

    try:
        return labels.decode(labels.encode(text))
    except Unspellable:
        return None
