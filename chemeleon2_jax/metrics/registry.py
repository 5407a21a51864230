"""The metrics that `evaluate` knows, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from chemeleon2_jax.common.suggest import suggest
from chemeleon2_jax.crystals.geometry import MIN_DISTANCE
from chemeleon2_jax.metrics import crystal_metrics, set_metrics
from chemeleon2_jax.metrics.composition import MAX_COMBINATIONS, OXIDATION_STATES
from chemeleon2_jax.metrics.metric import CrystalMetric, Metric, SetMetric
from chemeleon2_jax.metrics.structure import COVALENT_FACTOR, MIN_VOLUME_PER_ATOM

REFERENCE, FEATURES = "reference", "feature_model"

NEEDS: Mapping[str, str] = MappingProxyType(
    {
        REFERENCE: "a reference to compare with",
        FEATURES: "a VAE that gives features: feature_model",
    }
)
"""What a metric may need of a user, and how that is told."""

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "unique": CrystalMetric(crystal_metrics.unique),
        "novel": CrystalMetric(crystal_metrics.novel, needs=(REFERENCE,)),
        "unique_novel": CrystalMetric(crystal_metrics.unique_novel, needs=(REFERENCE,)),
        "valid_unique_novel": CrystalMetric(crystal_metrics.valid_unique_novel, needs=(REFERENCE,)),
        "valid": CrystalMetric(
            crystal_metrics.valid,
            settings={"min_distance": MIN_DISTANCE, "min_volume_per_atom": MIN_VOLUME_PER_ATOM},
        ),
        "covalent": CrystalMetric(
            crystal_metrics.covalent, settings={"covalent_factor": COVALENT_FACTOR}
        ),
        "composition_valid": CrystalMetric(
            crystal_metrics.composition_valid,
            settings={"oxidation_states": OXIDATION_STATES, "max_combinations": MAX_COMBINATIONS},
        ),
        "space_group": CrystalMetric(
            crystal_metrics.space_group, "label", settings={"symprec": crystal_metrics.SYMPREC}
        ),
        "density": CrystalMetric(crystal_metrics.density, "number", "g/cm3"),
        "atomic_density": CrystalMetric(crystal_metrics.atomic_density, "number", "1/A3"),
        "wasserstein_density": SetMetric(
            set_metrics.wasserstein_density, "g/cm3", needs=(REFERENCE,)
        ),
        "wasserstein_num_elements": SetMetric(
            set_metrics.wasserstein_num_elements, needs=(REFERENCE,)
        ),
        **{
            compute.__name__: SetMetric(compute, needs=(REFERENCE, FEATURES))
            for compute in (
                set_metrics.structure_diversity,
                set_metrics.composition_diversity,
                set_metrics.structure_frechet,
                set_metrics.composition_frechet,
                set_metrics.structure_mmd,
                set_metrics.composition_mmd,
            )
        },
    }
)
"""All metrics, those of a crystal in the order of the table. Another one is a function and a line
here."""


def choose_metrics(names: Sequence[str] | None, *, given: Collection[str]) -> list[str]:
    """Return the metrics to compute, each once.

    Args:
        names: in the order of the table; None or nothing is all that can be computed.
        given: those of `NEEDS` that are there.

    Raises:
        ValueError: an unknown name, with the nearest, or one whose needs are not all given.
    """
    if not names:
        return [name for name, metric in METRICS.items() if set(metric.needs) <= set(given)]
    for name in names:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}: {suggest(name, METRICS)}")
        for need in METRICS[name].needs:
            if need not in given:
                raise ValueError(f"metric {name!r} needs {NEEDS[need]}")
    return list(dict.fromkeys(names))
