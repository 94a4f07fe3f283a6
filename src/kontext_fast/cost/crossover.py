"""From which daily volume on one way of paying is cheaper than another.

Volumes are images a day and `math.inf` where the other way never becomes cheaper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kontext_fast.cost.billing import HOURS_PER_DAY, SECONDS_PER_HOUR, Demand, Tariff, most_images_per_day
from kontext_fast.cost.payback import NEVER
from kontext_fast.cost.prices import Price
from kontext_fast.cost.work import Work
from kontext_fast.errors import InvalidInput


@dataclass(frozen=True)
class Crossover:
    """`cheaper` costs less than `instead_of` from `images_per_day` on."""

    cheaper: str
    instead_of: str
    images_per_day: float


def fleet_instead_of_use(work: Work, demand: Demand, by_use: Tariff, fleet: Tariff) -> Crossover:
    """From where on a fleet that is always on (or reserved) costs no more than paying by use.

    The fleet's cost grows in steps with its GPUs; this is where its smallest one becomes the cheaper way, which is
    also where it has to be if any larger one does.
    """
    if by_use.billing != "by-use" or fleet.billing == "by-use":
        raise InvalidInput("A crossover compares by-use with always-on or reserved: choose one of each.")
    gpus = fleet.price.count
    hours = HOURS_PER_DAY * gpus * fleet.price.usd_per_gpu_hour / by_use.price.usd_per_gpu_hour
    starting = demand.cold_starts_per_day * (work.cold_start_s or 0.0) / SECONDS_PER_HOUR
    volume = max(0.0, hours - starting) * SECONDS_PER_HOUR * work.images_per_call / work.seconds.value
    served = _served(gpus, work, demand, fleet)
    return Crossover(_named(fleet), _named(by_use), volume if volume <= served else NEVER)


def hosting_instead_of_api(
    work: Work, demand: Demand, tariff: Tariff, api: Price, *, licence_usd_per_month: float = 0.0
) -> Crossover:
    """From where on hosting under `tariff` costs no more than buying images at `api`'s price."""
    if api.usd_per_image is None:
        raise InvalidInput(f"Price {api.id} is of kind {api.kind}, not of an image: choose one of kind api.")
    licence = licence_usd_per_month / demand.days_per_month
    bought = api.usd_per_image
    price = tariff.price.usd_per_gpu_hour
    if tariff.billing == "by-use":
        usd_per_image = price * work.seconds.value / (SECONDS_PER_HOUR * work.images_per_call)
        starting = price * demand.cold_starts_per_day * (work.cold_start_s or 0.0) / SECONDS_PER_HOUR
        volume = (licence + starting) / (bought - usd_per_image) if usd_per_image < bought else NEVER
    else:
        volume = _fleet_against_api(work, demand, tariff, bought, licence)
    return Crossover(_named(tariff), api.id, volume)


def _fleet_against_api(work: Work, demand: Demand, tariff: Tariff, bought: float, licence: float) -> float:
    step = tariff.price.count
    paid = HOURS_PER_DAY * step * tariff.price.usd_per_gpu_hour
    margin = bought * _served(step, work, demand, tariff) - paid
    if margin <= 0:
        return NEVER
    steps = max(1, math.ceil(licence / margin))
    return (steps * paid + licence) / bought


def _served(gpus: int, work: Work, demand: Demand, tariff: Tariff) -> float:
    rho_max = work.highest_load(tariff.rho_max)
    return most_images_per_day(
        gpus, work.seconds.value, work.images_per_call, peak_share=demand.peak_share, rho_max=rho_max
    )


def _named(tariff: Tariff) -> str:
    return f"{tariff.billing} at {tariff.price.id}"
