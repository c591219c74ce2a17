"""From frames to features."""

from __future__ import annotations

from scatterflow.config.base import Section, option
from scatterflow.config.observe import ParasiticConfig


class PreprocessConfig(Section):
    """In-plane cut and coarse image, each scaled to [0, 1]."""

    profile_log: bool = option(
        False,
        help="take log10 of the profile's counts before scaling each part to [0, 1]; the paper scales the counts",
        source="arXiv 2210.01543, A.5",
    )
    image_clip_percentile: float = option(
        10.0, ge=0, lt=100, help="image counts below this percentile of the valid pixels are raised to it before log10",
        unit="percent", source="the authors' script",
    )  # fmt: skip
    parasitic: ParasiticConfig = option(
        ParasiticConfig(), help="parasitic scattering of the beam stop, removed from experiments' profiles"
    )
    max_masked_share: float = option(
        0.5,
        gt=0,
        lt=1,
        help="a frame with a larger share of masked profile points or image bins is refused (masked-out)",
    )
    max_masked_part_share: float = option(
        0.8, gt=0, lt=1, help="the same for each part of the profile, below and above the beam stop"
    )
