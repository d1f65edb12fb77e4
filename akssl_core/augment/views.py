"""The augmentations of the core: two alike views, two unlike views, and multi-crop."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ..config.schema import Schema
from ..data.base import ImageSpec
from .base import Augmentation, ViewGroup
from .policy import PolicyTransform, Saturation, Scale, SolarizeChance, ViewPolicy, decisions

SIZE = "side of the views in pixels; null: the run's image size"


class _Policies(Augmentation):
    """The base of augmentations by policy: groups made once, and notes about every view."""

    def __init__(self, config: Schema, image: ImageSpec, groups: Sequence[ViewGroup]) -> None:
        super().__init__(config, image)
        self._groups = groups

    def groups(self) -> Sequence[ViewGroup]:
        """The views, in the order in which a method sees them."""
        return self._groups

    @property
    def notes(self) -> list[str]:
        """Values decided and operations left out, each once."""
        transforms = [t for group in self._groups for t in group.transforms if isinstance(t, PolicyTransform)]
        return decisions(transforms, self.image.channels)


class Pair(_Policies):
    """Two views drawn alike (SimCLR, arXiv 2002.05709; MoCo v2, arXiv 2003.04297)."""

    name = "pair"

    class Config(ViewPolicy):
        """The policy of both views."""

        size: int | None = Field(None, ge=8, description=SIZE)

    def __init__(self, config: Config, image: ImageSpec) -> None:
        size = config.size or image.size
        view = PolicyTransform(config, size, image)
        super().__init__(config, image, [ViewGroup("global", size, (view, view))])


class FirstPolicy(ViewPolicy):
    """The first view of an unlike pair."""

    scale: Scale = (0.08, 1.0)
    saturation: Saturation = 0.2


class SecondPolicy(FirstPolicy):
    """The second view of an unlike pair."""

    solarize: SolarizeChance = 0.2


class Asymmetric(_Policies):
    """Two views drawn by two policies (BYOL, arXiv 2006.07733)."""

    name = "asymmetric"

    class Config(Schema):
        """A policy for each view."""

        first: FirstPolicy = Field(FirstPolicy(), description="policy of the first view")
        second: SecondPolicy = Field(SecondPolicy(), description="policy of the second view")
        size: int | None = Field(None, ge=8, description=SIZE)

    def __init__(self, config: Config, image: ImageSpec) -> None:
        size = config.size or image.size
        views = tuple(PolicyTransform(policy, size, image) for policy in (config.first, config.second))
        super().__init__(config, image, [ViewGroup("global", size, views)])


class GlobalPolicy(ViewPolicy):
    """A large crop of multi-crop."""

    scale: Scale = (0.14, 1.0)


class LocalPolicy(ViewPolicy):
    """A small crop of multi-crop."""

    scale: Scale = (0.05, 0.14)


class MultiCrop(_Policies):
    """Two large crops and several small ones (SwAV, arXiv 2006.09882)."""

    name = "multicrop"

    class Config(Schema):
        """A policy for each global view, and one for all local views."""

        first: GlobalPolicy = Field(GlobalPolicy(), description="policy of the first global view")
        second: GlobalPolicy = Field(GlobalPolicy(), description="policy of the second global view")
        local: LocalPolicy = Field(LocalPolicy(), description="policy of every local view")
        local_count: int = Field(6, ge=0, description="number of local views")
        size: int | None = Field(None, ge=8, description=SIZE.replace("the views", "the global views"))
        local_size: int | None = Field(
            None, ge=8, description="side of the local views in pixels; null: 96/224 of the global side, whole patches"
        )

    def __init__(self, config: Config, image: ImageSpec) -> None:
        size = config.size or image.size
        views = tuple(PolicyTransform(policy, size, image) for policy in (config.first, config.second))
        super().__init__(config, image, [ViewGroup("global", size, views)])
        self._whole = ""
        self._add_local(config.local_size or local_size(size))

    def _add_local(self, side: int) -> None:
        self.local_size, count = side, self.config.local_count
        local = ViewGroup("local", side, (PolicyTransform(self.config.local, side, self.image),) * count)
        self._groups = [self._groups[0], local] if count else self._groups

    def fit_patches(self, side: int) -> None:
        """Gives local views whose size was left open whole patches, as 96 px are for patches of 16 px."""
        if self.config.local_size is None:
            self._whole = f", in patches of {side} px"
            self._add_local(local_size(self._groups[0].size, side))

    @property
    def notes(self) -> list[str]:
        """Also says how large the local views are when the user left it open."""
        if self.config.local_size or not self.config.local_count:
            return super().notes
        reason = f"96/224 of {self._groups[0].size} px{self._whole or ', even'}, at least 8"
        return [f"local views have {self.local_size} px ({reason})", *super().notes]


def local_size(size: int, multiple: int = 2) -> int:
    """The side of local views that goes with a global side: 96 for 224, a multiple of `multiple`, at least 8."""
    return multiple * max(round(size * 96 / 224 / multiple), -(-8 // multiple))
