"""From expected counts to what a detector records."""

from __future__ import annotations

from typing import Literal

from scatterflow.config.base import Section, option


class ObserveConfig(Section):
    """Counting noise and artefacts of a frame."""

    noise: Literal["poisson", "none"] = option(
        "poisson",
        help="counting noise: Poisson, or none as in the paper's training images",
        source="photon counting; arXiv 2210.01543 trained without noise",
    )
    dead_share: float = option(
        0.0, ge=0, lt=0.5, help="share of bins that are masked at random in each frame (dead or hot pixels)"
    )
    min_valid_share: float = option(
        0.5, gt=0, le=1, help="a bin is valid if at least this share of its pixels is; its counts are scaled up to all"
    )


class ParasiticConfig(Section):
    """Parasitic scattering of the beam stop in the in-plane profile of an experiment.

    The measured profile is weighted by `scale |qz - centre|^power` on either side of the beam stop; on simulated
    'experiments' the same factor is divided out of the expected counts first.
    """

    centre_qz_per_nm: float = option(
        0.99, gt=0, help="qz of the beam stop's centre", unit="nm^-1", source="Randolph 2022"
    )
    above_power: float = option(1.4, help="exponent of the weight above the beam stop", source="Randolph 2022")
    above_scale: float = option(3.0, gt=0, help="factor of the weight above the beam stop", source="Randolph 2022")
    below_power: float = option(1.1, help="exponent of the weight below the beam stop", source="Randolph 2022")
    below_scale: float = option(1.0, gt=0, help="factor of the weight below the beam stop", source="Randolph 2022")
