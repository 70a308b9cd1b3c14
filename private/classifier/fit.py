"""The private event of the classifier: reserve → read → spend → train → sign → write → commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from hyperdp import accounting
from hyperdp.budget import PrivacyBudget
from hyperdp.certificate import CERTIFICATE_FILE
from hyperdp.chain import Entry
from hyperdp.classifier_certificate import CLASSIFIER_FILES, ClassifierCertificate
from hyperdp.errors import DataError, HyperdpError, UsageError, VerificationError
from hyperdp.ledger import Ledger
from hyperdp.private.class_names import check_classes
from hyperdp.private.classifier.config import ClassifierConfig
from hyperdp.private.classifier.network import NetworkConfig, WideResNet
from hyperdp.private.classifier.training import Progress, Speed, train
from hyperdp.private.learners.calibrate import calibrate, training_event
from hyperdp.private.learners.training import check_delta
from hyperdp.private.records import Record
from hyperdp.private.released import new_folder

ABOUT_FILE, WEIGHTS_FILE = CLASSIFIER_FILES


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivateClassifier:
    """A trained classifier; with its weights it may be published.

    Attributes:
        model: in eval mode.
        classes: names of its outputs.
        about: what was promised and how it was trained; plain types.
    """

    model: nn.Module
    classes: list[str]
    about: Mapping[str, object]

    @classmethod
    def load(cls, folder: str | Path) -> PrivateClassifier:
        """Read what `fit_classifier` wrote.

        Raises:
            DataError: a file is missing, or is not of such a run.
        """
        place = Path(folder)
        try:
            about = json.loads((place / ABOUT_FILE).read_text())
            network = about["config"]["network"]
            lists = {key: tuple(v) for key, v in network.items() if isinstance(v, list)}
            model = WideResNet(NetworkConfig(**{**network, **lists}))
            model.load_state_dict(load_file(place / WEIGHTS_FILE))
            return cls(model=model.eval(), classes=list(about["classes"]), about=about)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise DataError(
                expected=f"{ABOUT_FILE} and {WEIGHTS_FILE} of a private classifier in {place}",
                found=f"{type(error).__name__}: {error}",
                todo="Name the folder that the run was written to.",
            ) from error

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Classes int64 [N] of images float32 [N, C, H, W] in [-1, 1]."""
        return torch.cat([self.model(part).argmax(1) for part in torch.split(images, 500)])


def fit_classifier(
    records: Iterable[Record],
    *,
    classes: Sequence[str],
    config: ClassifierConfig,
    expected_units: int,
    budget: PrivacyBudget,
    ledger: Ledger,
    dataset: str,
    out: str | Path,
    start: Mapping[str, Tensor] | None = None,
    allow_weak_delta: bool = False,
    speed: Speed | None = None,
    progress: Progress | None = None,
) -> PrivateClassifier:
    """Train the classifier of De et al. 2022 (arXiv 2204.13650) on labelled private images.

    (ε, δ)-differentially private for add-remove adjacency of one record: each step is a Gaussian
    mechanism on the integer sum of clipped gradients of a Poisson sample, and the ledger composes
    the T of them as a privacy loss distribution. The budget is spent once it is reserved.

    Args:
        records: private; read once, after the reservation.
        classes: public names of all classes.
        config: public; chosen without these records.
        expected_units: public guess of n; only q = batch_size / expected_units follows from it.
        budget: of the whole run; adjacency add-remove and unit record.
        ledger: where it is spent.
        dataset: the operator's name for the dataset.
        out: folder to be made, with the weights, a description and a signed certificate.
        start: public weights to begin with, as `WideResNet.state_dict` names them.
        allow_weak_delta: accept δ >= 1 / expected_units.
        speed: see `Speed`.
        progress: called with (steps done, T).

    Returns:
        The classifier, as `PrivateClassifier.load(out)` reads it.

    Raises:
        BudgetRefusedError: the ledger refuses.
        UsageError: bad arguments, a unit or adjacency that Poisson sampling does not serve.
        DataError: a record has another shape, or a label outside `classes`.
    """
    names = check_classes(classes)
    check_delta(expected_units, budget, allow=allow_weak_delta)
    _check(config, budget, len(names), start)
    probability = config.probability(expected_units)
    multiplier = calibrate(budget, probability=probability, steps=config.steps)
    event = training_event(multiplier, probability, config.steps)
    with new_folder(Path(out)) as folder:
        reservation = ledger.reserve(
            dataset,
            budget=budget,
            event=event,
            bundle_hash=config.hash,
            purpose="classifier",
        )
        folder.paid = True
        images, labels = _read(records, config.network.image_shape, names)
        reservation.spend()
        weights = train(
            images,
            labels,
            config,
            noise_multiplier=multiplier,
            probability=probability,
            start=start,
            speed=speed,
            progress=progress,
        )
        if not all(bool(weight.isfinite().all()) for weight in weights.values()):
            raise VerificationError(
                expected="weights that are finite",
                found="some that are not",
                todo="Lower the learning rate; the budget is spent.",
            )
        tensors = tensors_to_bytes({name: w.contiguous() for name, w in weights.items()})
        about = {
            "classes": names,
            "config": asdict(config),
            "budget": dict(vars(budget)),
            "event": accounting.event_to_json(event),
            "weights_sha256": hashlib.sha256(tensors).hexdigest(),
        }
        text = json.dumps(about, indent=1, ensure_ascii=False).encode()
        files = {WEIGHTS_FILE: tensors, ABOUT_FILE: text}
        certificate = _certificate(
            config, budget, multiplier, expected_units, names, start, reservation.entry, files
        ).to_bytes()
        folder.publish({**files, CERTIFICATE_FILE: certificate})
        reservation.commit(
            certificate_sha256=hashlib.sha256(certificate).hexdigest(), bundle_hash=config.hash
        )
    return PrivateClassifier.load(out)


def _certificate(
    config: ClassifierConfig,
    budget: PrivacyBudget,
    multiplier: float,
    expected_units: int,
    classes: list[str],
    start: Mapping[str, Tensor] | None,
    entry: Entry,
    files: Mapping[str, bytes],
) -> ClassifierCertificate:
    """State and sign what a classifier was trained with."""
    began = (
        b""
        if start is None
        else tensors_to_bytes(
            {name: w.detach().cpu().contiguous() for name, w in sorted(start.items())}
        )
    )
    return ClassifierCertificate(
        created=entry.time,
        code_version=version("hyperdp"),
        adjacency=budget.adjacency,
        unit=budget.unit,
        epsilon=float(budget.epsilon),
        delta=float(budget.delta),
        noise_multiplier=multiplier,
        sampling_probability=config.probability(expected_units),
        steps=config.steps,
        clip_norm=float(config.clip_norm),
        size=expected_units,
        expected_batch=config.batch_size,
        config=json.loads(json.dumps(asdict(config))),
        bundle_hash=config.hash,
        classes=classes,
        start_sha256=hashlib.sha256(began).hexdigest() if began else "",
        event=entry.body["event"],
        ledger_id=entry.body["ledger_id"],
        ledger_seq=entry.seq,
        ledger_seal=entry.seal,
        dataset=entry.dataset,
        files_sha256={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    ).signed()


def _check(
    config: ClassifierConfig,
    budget: PrivacyBudget,
    classes: int,
    start: Mapping[str, Tensor] | None,
) -> None:
    if (budget.adjacency, budget.unit) != ("add-remove", "record"):
        raise UsageError(
            expected="adjacency='add-remove' and unit='record' for DP-SGD",
            found=f"adjacency={budget.adjacency!r} and unit={budget.unit!r}",
            todo="Use these; Poisson sampling of records is accounted for under them alone.",
        )
    if classes != config.network.classes:
        raise UsageError(
            expected=f"{config.network.classes} class names, the outputs of the network",
            found=f"{classes}",
            todo="Name every class that can occur, and set network.classes to their number.",
        )
    if start is not None:
        shapes = {n: tuple(p.shape) for n, p in WideResNet(config.network).state_dict().items()}
        given = {name: tuple(p.shape) for name, p in start.items()}
        if given != shapes:
            wrong = sorted(name for name in shapes | given if shapes.get(name) != given.get(name))
            raise UsageError(
                expected="weights to start with of the same network",
                found=f"others at {', '.join(wrong[:3])}",
                todo="Train the public start with the same network configuration.",
            )


def _read(
    records: Iterable[Record], shape: tuple[int, int, int], classes: list[str]
) -> tuple[Tensor, Tensor]:
    """Images float32 [n, C, H, W] and labels int64 [n]; n may be 0. No error names a record."""
    index = {name: i for i, name in enumerate(classes)}
    failure: HyperdpError = DataError(
        expected="records that can be read",
        found="an error whose text may hold private values and is not shown",
        todo="Try the reader on public data of the same form. The budget reserved is spent.",
    )
    try:
        images, labels = [], []
        for record in records:
            if record.label not in index or record.image.shape != tuple(shape):
                failure = DataError(
                    expected=f"every record to be float32 {tuple(shape)} and of a class given",
                    found="one that is not (not named: it is private)",
                    todo="Name every class that can occur. The budget reserved is spent.",
                )
                break
            images.append(np.clip(np.asarray(record.image, dtype=np.float32), -1, 1))
            labels.append(index[record.label])
        else:
            stacked = np.stack(images) if images else np.zeros((0, *shape), dtype=np.float32)
            return torch.from_numpy(stacked), torch.tensor(labels, dtype=torch.int64)
    except Exception:  # noqa: BLE001, S110  # even its type may depend on a record
        pass
    raise failure
