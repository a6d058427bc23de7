"""Labels in words as the classifier of networks that learned from captions (CLIP).

Nothing is trained, and no label is used but those of the search split: the names of the classes,
each in a few sentences, become the last layer of every network (`nas.evaluation.zero_shot`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas.data import Dataset
from nas.errors import UsageError
from nas.evaluation.zero_shot import fold, keep_projection, mean_length
from nas.network.network import Network
from nas.scores import check_labels
from nas.space.task import Hits
from nas.text.encoder import TextEncoder, has_texts
from nas.text.prompts import checked_labels, classifier_of

if TYPE_CHECKING:
    from torch import Tensor

    from nas.space.task import Batch, Observed

READS_WORDS = True
_SOME = 64  # training pictures, whose embeddings say how long these are


@dataclass(frozen=True, eq=False)
class ZeroShot(Hits):
    """The share of samples whose class is the label that is nearest.

    `supernet` is the folder with the texts, `names` are the labels.
    """

    supernet: Path
    names: tuple[str, ...]

    name = "zero_shot"
    label = "zero-shot accuracy"
    heading = "zero-shot"

    def observe(self, outputs: Tensor, batch: Batch) -> Observed:
        """Which samples are classified correctly (samples,), bool."""
        hits: Observed = (outputs.argmax(1) == batch["labels"]).cpu().numpy()
        return hits

    def searched(self, network: Network, data: Dataset) -> Network:
        """The supernet with the labels folded into its last layer."""
        space, encoder = network.space, TextEncoder.load(self.supernet)
        rows = classifier_of(encoder, self.names)
        if space.task.labelled or space.task.outputs != rows.shape[1]:
            raise UsageError(
                f"the texts in {self.supernet} are not those of its networks",
                "restore the folder, or train again: vitnas train --objective clip",
            )
        first = data.first(data.train, _SOME, space.largest.resolution)[space.parts.takes]
        scale = float(encoder.tower.scale.detach()) / mean_length(network, first)
        return fold(network, rows, scale, self.names)

    def keep(self, network: Network, folder: Path) -> None:
        """Write the texts and the projection, so that other labels can be asked for."""
        TextEncoder.load(self.supernet).save(folder)
        keep_projection(network, folder)


def load(data: Dataset, supernet: Path, references: int) -> ZeroShot:
    """The score for a data set whose classes have names, and a supernet that knows words."""
    check_labels("zero-shot", data)
    names = data.task.describe().get("classes")
    if not isinstance(names, list):
        raise UsageError(
            f"zero-shot reads the names of classes, and those of {data.name} have none",
            "give --data with named classes, e.g. imagefolder:PATH",
        )
    checked_labels(names, "rename one of these classes")
    if not has_texts(supernet):
        raise UsageError(
            f"the supernet in {supernet} knows no words: it did not learn from captions",
            "give --supernet of vitnas train --objective clip",
        )
    return ZeroShot(supernet, tuple(names))
