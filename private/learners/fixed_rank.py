"""Rank-r matrices Z = A B' as a manifold: tangents, their norm, isotropic noise, and the way back.

The symbols are PRISM's (Wang & Zhang 2026, arXiv 2606.00944): A [m, r] is lora_B, and B [n, r] is
lora_A flattened to [r, n] and transposed; M = A'A, N = B'B; Π_A, Π_B project onto the columns of A
and B. G [m, n] is the gradient of Z, never formed: its factors g_A = G B and g_B = G' A are what
backpropagation gives. A *pair* (dA [..., m, r], dB [..., n, r]) stands for the tangent
dZ = dA B' + A dB'.

One tangent has many pairs: (dA + A Ω, dB - B Ω') is the same dZ for every Ω [r, r]. So whatever is
computed from a pair other than its dZ is computed from more than the mechanism protects. Two rules
choose one pair for each dZ, `canonical` and `horizontal`, and everything released goes through one
of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperdp.private.learners.normal import Normal

Pair = tuple[Tensor, Tensor]
"""(dA [..., m, r], dB [..., n, r]), float64."""


@dataclass(frozen=True, kw_only=True)
class FixedRank:
    """A point of the manifold and what the formulas need of it; all float64.

    Attributes:
        a, b: A [m, r] and B [n, r], both of full rank r.
        frame_a, frame_b: orthonormal bases of their columns, [m, r] and [n, r].
        turn_a, mu: M = turn_a diag(mu) turn_a', [r, r] and [r].
        turn_b, nu: N = turn_b diag(nu) turn_b'.
    """

    a: Tensor
    b: Tensor
    frame_a: Tensor
    frame_b: Tensor
    turn_a: Tensor
    turn_b: Tensor
    mu: Tensor
    nu: Tensor

    @classmethod
    def at(cls, a: Tensor, b: Tensor) -> FixedRank:
        """The point A B'.

        Args:
            a: [m, r] with m >= r, of rank r.
            b: [n, r] with n >= r, of rank r.
        """
        a, b = a.double(), b.double()
        # By SVD and not by eigenvalues of A'A, whose smallest would lose half of its digits.
        frame_a, s_a, turn_a = torch.linalg.svd(a, full_matrices=False)
        frame_b, s_b, turn_b = torch.linalg.svd(b, full_matrices=False)
        return cls(
            a=a,
            b=b,
            frame_a=frame_a,
            frame_b=frame_b,
            turn_a=turn_a.T,
            turn_b=turn_b.T,
            mu=s_a.square(),
            nu=s_b.square(),
        )

    def power_m(self, exponent: float) -> Tensor:
        """M to a power, [r, r]."""
        return self.turn_a * self.mu.pow(exponent) @ self.turn_a.T

    def power_n(self, exponent: float) -> Tensor:
        """N to a power, [r, r]."""
        return self.turn_b * self.nu.pow(exponent) @ self.turn_b.T

    def lift(self, g_a: Tensor, g_b: Tensor) -> Pair:
        """The pair of the gradient's tangent part, P(G) = Π_A G + G Π_B - Π_A G Π_B (equation 14).

        dA = Y_A - Π_A Y_A / 2 with Y_A = g_A N⁻¹, and dB likewise with M. It is covariant under
        (A, B) → (A R, B R'⁻¹), but not horizontal, against appendix A.1 of the paper.

        Args:
            g_a: G B, [..., m, r].
            g_b: G' A, [..., n, r].
        """
        y_a, y_b = g_a @ self.power_n(-1), g_b @ self.power_m(-1)
        return (
            y_a - self.frame_a @ (self.frame_a.T @ y_a) / 2,
            y_b - self.frame_b @ (self.frame_b.T @ y_b) / 2,
        )

    def norm_squared(self, pair: Pair) -> Tensor:
        """‖dA B' + A dB'‖² (Frobenius) for any pair, without forming it (equation 15).

        Returns:
            float64 [...].
        """
        d_a, d_b = (part.double() for part in pair)
        squares = ((d_a @ self.power_n(1)) * d_a).sum((-2, -1)) + (
            (d_b @ self.power_m(1)) * d_b
        ).sum((-2, -1))
        crossed = ((self.a.T @ d_a) * (self.b.T @ d_b).transpose(-2, -1)).sum((-2, -1))
        return (squares + 2 * crossed).clamp(min=0)

    def canonical(self, pair: Pair) -> Pair:
        """The pair of the same dZ that `lift` would choose: a function of dZ alone.

        dZ B = dA N + A dB'B and dZ'A = dB M + B dA'A are its factor gradients, and P(dZ) = dZ.
        """
        d_a, d_b = pair
        across_b = d_b.transpose(-2, -1) @ self.b  # dB'B
        across_a = d_a.transpose(-2, -1) @ self.a  # dA'A
        return self.lift(
            d_a @ self.power_n(1) + self.a @ across_b, d_b @ self.power_m(1) + self.b @ across_a
        )

    def horizontal(self, pair: Pair) -> Pair:
        """The pair of the same dZ with A'dA = dB'B: a function of dZ alone.

        Solves M Ω + Ω N = dB'B - A'dA (Sylvester) and returns (dA + A Ω, dB - B Ω'), as the
        released code does. Equation 39 of the paper has B'dB on the right, which does not do it.
        """
        d_a, d_b = pair
        right = d_b.transpose(-2, -1) @ self.b - self.a.T @ d_a
        turned = self.turn_a.T @ right @ self.turn_b / (self.mu[:, None] + self.nu[None, :])
        omega = self.turn_a @ turned @ self.turn_b.T
        return d_a + self.a @ omega, d_b - self.b @ omega.transpose(-2, -1)

    def noise(self, normal: Normal) -> Pair:
        """Noise whose dZ has variance 1 in each of the r(m + n - r) tangent directions.

        Equation 19, Ξ_A = (I - Π_A) Ω_A N^{-1/2} and Ξ_B = Ω_B M^{-1/2} with standard normal Ω, and
        then `canonical`. That last step is a correction: A'Ξ_A = 0, so in the sum of a lift and
        (Ξ_A, Ξ_B) as Algorithm 1 has it the block A'dA stands without any noise, and the momentum
        and preconditioner that the algorithm makes of dA are no post-processing of a private
        release. The dZ of the noise is the same to the last digit.

        Args:
            normal: standard normals, float64.
        """
        omega_a, omega_b = (normal(*factor.shape).to(factor.device) for factor in (self.a, self.b))
        xi_a = (omega_a - self.frame_a @ (self.frame_a.T @ omega_a)) @ self.power_n(-0.5)
        return self.canonical((xi_a, omega_b @ self.power_m(-0.5)))

    def noise_moments(self, *, horizontal: bool) -> tuple[Tensor, Tensor]:
        """E[dA'dA] and E[dB'dB], [r, r] each, of `noise`, or of `horizontal` of it.

        The paper's (m - r) N⁻¹ and n M⁻¹ are those of equation 19 as it stands; the part of the
        noise in Π_A · Π_B, which both factors share here, adds to one and takes from the other.
        """
        (m, r), n = self.a.shape, len(self.b)
        if not horizontal:
            return (m - 0.75 * r) * self.power_n(-1), (n - 0.75 * r) * self.power_m(-1)
        shared = (self.mu[:, None] + self.nu[None, :]).pow(-2)  # [r, r]
        part_a = self.turn_b * (self.nu * shared.sum(0)) @ self.turn_b.T
        part_b = self.turn_a * (self.mu * shared.sum(1)) @ self.turn_a.T
        return (m - r) * self.power_n(-1) + part_a, (n - r) * self.power_m(-1) + part_b


def retract(
    a: Tensor, b: Tensor, d_a: Tensor, d_b: Tensor, *, rank_floor: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The best rank-r approximation of A B' + dA B' + A dB', balanced, in the old pair's frame.

    Thin QR of [A, dA] and [B, dB], SVD of a 2r × 2r core, √S to each factor, and the rotation that
    brings the new pair nearest to the old one (orthogonal Procrustes), so that moments kept in
    factor coordinates stay comparable. A'A = B'B afterwards. The tangent is given with its sign and
    step length in it. Its error against A B' + dA B' + A dB' is below ‖dA dB'‖.

    Args:
        a: A [m, r], float64.
        b: B [n, r].
        d_a: dA [m, r].
        d_b: dB [n, r].
        rank_floor: singular values are kept above this part of the largest one, so that the next
            step has full rank to work with.

    Returns:
        A⁺ [m, r] and B⁺ [n, r].
    """
    r = a.shape[1]
    q_a, r_a = torch.linalg.qr(torch.cat([a, d_a], 1))
    q_b, r_b = torch.linalg.qr(torch.cat([b, d_b], 1))
    eye = torch.eye(r, dtype=a.dtype, device=a.device)
    core = torch.cat([torch.cat([eye, eye], 1), torch.cat([eye, torch.zeros_like(eye)], 1)])
    left, s, right = torch.linalg.svd(r_a @ core @ r_b.T)
    root = s[:r].clamp(min=rank_floor * float(s[0])).sqrt()
    new_a, new_b = q_a @ left[:, :r] * root, q_b @ right[:r].T * root
    u, _, v = torch.linalg.svd(new_a.T @ a + new_b.T @ b)
    return new_a @ (u @ v), new_b @ (u @ v)


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """Those of A B', [r] in falling order, without forming it."""
    r_a, r_b = torch.linalg.qr(a.double()).R, torch.linalg.qr(b.double()).R
    s: Tensor = torch.linalg.svdvals(r_a @ r_b.T)
    return s


def balance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The pair of the same product with A'A = B'B diagonal, √S in each: float64."""
    q_a, r_a = torch.linalg.qr(a.double())
    q_b, r_b = torch.linalg.qr(b.double())
    left, s, right = torch.linalg.svd(r_a @ r_b.T)
    return q_a @ left * s.sqrt(), q_b @ right.T * s.sqrt()
