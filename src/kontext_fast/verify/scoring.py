"""The outputs of a verification's arms with what each is compared with, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kontext_fast.datasets.base import Item
from kontext_fast.metrics.base import Role, discover
from kontext_fast.metrics.scorer import Scorer, StoredOutput
from kontext_fast.records.schema import BASELINE, Record, Score
from kontext_fast.records.store import ResultStore
from kontext_fast.verify.analysis import BETWEEN_SEEDS
from kontext_fast.verify.journal import Journal


class ArmOutputs:
    """The stored outputs of all arms."""

    def __init__(
        self, records: Mapping[str, Record], items: Mapping[str, Item], store: ResultStore, journal: Journal
    ) -> None:
        """`records` by the name of the arm."""
        self._records = records
        self._items = items
        self._store = store
        self._journal = journal

    def of(self, arm: str) -> list[StoredOutput]:
        """Each with the output of the arm's reference for the same item and seed; baseline, which has none, is
        compared with its own first seed of the item.
        """
        reference = self._reference(arm)
        images = self._images(reference)
        first_seeds: dict[str, int] = {}
        for item, seed in sorted(images):
            first_seeds.setdefault(item, seed)
        outputs = []
        for (item, seed), image in self._images(arm).items():
            other = seed if reference != arm else first_seeds[item]
            compared = (item, other) in images and (reference, other) != (arm, seed)
            outputs.append(
                StoredOutput(
                    item=self._items[item],
                    seed=seed,
                    image=image,
                    file=self._store.image_path(image),
                    reference_file=self._store.image_path(images[item, other]) if compared else None,
                    latents_file=self._journal.latents_file(arm, item, seed),
                    reference_latents_file=self._journal.latents_file(reference, item, other) if compared else None,
                )
            )
        return outputs

    def _reference(self, arm: str) -> str:
        facts = self._records[arm].arm
        return facts.preset if facts and facts.role == "order" and facts.preset else BASELINE

    def _images(self, arm: str) -> dict[tuple[str, int], str]:
        return {(output.item, output.seed): output.image for output in self._records[arm].outputs if output.image}


def score_arms(
    scorer: Scorer, outputs: ArmOutputs, arms: list[str], on_progress: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[str, tuple[Score, ...]]]:
    """The scores of one arm after the other. Raises InvalidInput where an image is missing."""
    fidelity = {metric.name for metric in discover().values() if metric.role is Role.FIDELITY}
    for arm, scores in scorer.score({arm: outputs.of(arm) for arm in arms}, on_progress):
        yield (
            arm,
            tuple(
                score.model_copy(update={"metric": score.metric + BETWEEN_SEEDS})
                if arm == BASELINE and score.metric in fidelity
                else score
                for score in scores
            ),
        )
