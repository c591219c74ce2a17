"""Complex numbers as pairs of real tensors: torch's compiler fuses real arithmetic, not complex."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Complex:
    """A complex tensor, real and imaginary part apart. Operators join complex tensors; real ones come by methods,
    since the compiler takes `Complex * Tensor` for a product of tensors.
    """

    __slots__ = ("im", "re")

    def __init__(self, re: Tensor, im: Tensor) -> None:
        self.re, self.im = re, im

    def __add__(self, other: Complex) -> Complex:
        return Complex(self.re + other.re, self.im + other.im)

    def __sub__(self, other: Complex) -> Complex:
        return Complex(self.re - other.re, self.im - other.im)

    def __neg__(self) -> Complex:
        return Complex(-self.re, -self.im)

    def __mul__(self, other: Complex) -> Complex:
        # addcmul: one pass over memory where a product and a sum take two
        return Complex(
            torch.addcmul(self.re * other.re, self.im, other.im, value=-1),
            torch.addcmul(self.re * other.im, self.im, other.re),
        )

    def __truediv__(self, other: Complex) -> Complex:
        return self * other.reciprocal()

    def plus(self, real: Tensor | float) -> Complex:
        """z + real."""
        return Complex(self.re + real, self.im)

    def times(self, real: Tensor | float) -> Complex:
        """z times real."""
        return Complex(self.re * real, self.im * real)

    def __getitem__(self, index: Any) -> Complex:
        return Complex(self.re[index], self.im[index])

    def square(self) -> Complex:
        """The square, with the real part factorised: exact cancellation of equal parts."""
        return Complex((self.re - self.im) * (self.re + self.im), 2 * self.re * self.im)

    def abs2(self) -> Tensor:
        """Squared modulus."""
        return torch.addcmul(self.re * self.re, self.im, self.im)

    def reciprocal(self) -> Complex:
        """1 / z."""
        scale = 1 / self.abs2()
        return Complex(self.re * scale, -self.im * scale)

    def exp(self) -> Complex:
        """exp(z)."""
        size = torch.exp(self.re)
        return Complex(size * torch.cos(self.im), size * torch.sin(self.im))

    def times_i(self) -> Complex:
        """i z."""
        return Complex(-self.im, self.re)

    def sqrt(self) -> Complex:
        """Principal square root (the upper one of a negative real number); z = 0 has no gradient."""
        large = torch.sqrt((torch.sqrt(self.abs2()) + self.re.abs()) / 2)
        small = self.im.abs() / (2 * large)
        right = self.re >= 0
        im = torch.where(right, small, large)
        return Complex(torch.where(right, large, small), torch.where(self.im < 0, -im, im))

    def detach(self) -> Complex:
        """The same values, without history."""
        return Complex(self.re.detach(), self.im.detach())


def where(condition: Tensor, yes: Complex, no: Complex) -> Complex:
    """Elementwise choice."""
    return Complex(torch.where(condition, yes.re, no.re), torch.where(condition, yes.im, no.im))


def stack(values: list[Complex], dim: int) -> Complex:
    """As torch.stack."""
    return Complex(torch.stack([v.re for v in values], dim), torch.stack([v.im for v in values], dim))
