"""S5: one diagonal state-space system shared by all channels (Smith, Warrington & Linderman 2023), after its code.

    h_k = Lbar h_{k-1} + Bbar u_k,  y_k = 2 Re(C h_k) + D u_k

Lambda is the spectrum of the normal part of HiPPO-LegS, S = V Lambda V^H, B and C are drawn in the basis of S and
rotated into that of Lambda, and every state has a time step of its own.
"""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from neoteny.networks._checks import positive
from neoteny.networks.dense import product_of_rows
from neoteny.networks.initializers import named_key
from neoteny.networks.recurrence import planar_recurrence, recurrence_step
from neoteny.networks.recurrence_kernels import as_complex, as_planes
from neoteny.networks.recurrent import RecurrentLayer, check_one_way, check_step, directions, over_sequences
from neoteny.networks.s4d import STEP_RANGE, Discretization, hippo_legs, log_steps

CLIPPED_AT = -1e-4
"""The largest real part of Lambda with `clip` (public S5 code)."""


class S5(RecurrentLayer):
    """A system of `state` states, half of them stored as conjugate pairs: (batch, length, width) to the same.

    `blocks` J makes S block-diagonal of J equal HiPPO matrices of size state / J. `step_per_state` False ties Delta to
    one number. `clip` holds Re Lambda at most at -1e-4. With `bidirectional` a second C reads a scan from the end.
    ValueError for a `state` that is not made of `blocks` even parts.
    """

    slow = frozenset({"A_re", "A_im", "B_re", "B_im", "delta_log"})

    A_re: Float[Array, " half"]
    A_im: Float[Array, " half"]
    B_re: Float[Array, "width half"]
    B_im: Float[Array, "width half"]
    C_re: Float[Array, "directions half width"]
    C_im: Float[Array, "directions half width"]
    D: Float[Array, " width"]
    delta_log: Float[Array, " steps"]
    width: int = eqx.field(static=True)
    state: int = eqx.field(static=True)
    discretization: Discretization = eqx.field(static=True)
    clip: bool = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        state: int,
        *,
        key: PRNGKeyArray,
        blocks: int = 1,
        discretization: Discretization = Discretization.ZOH,
        step_per_state: bool = True,
        step_range: tuple[float, float] = STEP_RANGE,
        clip: bool = False,
        bidirectional: bool = False,
    ):
        self.width, self.state = positive(width, "width"), positive(state, "state")
        if self.state % (2 * positive(blocks, "blocks")):
            raise ValueError(f"state must be a multiple of 2 blocks = {2 * blocks}; got {state}")
        size, half = self.state // blocks, self.state // 2
        self.discretization, self.clip = Discretization(discretization), bool(clip)
        eigenvalues, vectors = hippo_legs(size)
        upper = vectors[:, size // 2 :]  # (size, size / 2): of positive imaginary part
        spectrum = np.tile(eigenvalues[size // 2 :], blocks)
        self.A_re, self.A_im = jnp.asarray(np.real(spectrum), jnp.float32), jnp.asarray(np.imag(spectrum), jnp.float32)
        rotation = jnp.asarray(np.kron(np.eye(blocks), upper), jnp.complex64)  # V: (state, half)

        def normal(name, shape, fan_in):
            return jax.random.normal(named_key(key, name), shape, jnp.float32) / math.sqrt(fan_in)

        b = normal("B", (self.width, self.state), self.width) @ rotation.conj()
        parts = normal("C", (2, 2 if bidirectional else 1, self.state, self.width), self.state)
        c = jnp.einsum("sh,dsw->dhw", rotation, lax.complex(parts[0], parts[1]))
        self.B_re, self.B_im, self.C_re, self.C_im = b.real, b.imag, c.real, c.imag
        self.D = normal("D", (self.width,), 1)
        self.delta_log = log_steps(named_key(key, "delta"), (half if step_per_state else 1,), *step_range)

    def discrete(self) -> tuple[Complex[Array, " half"], Complex[Array, "width half"]]:
        """(Lbar, Bbar)."""
        real = jnp.minimum(self.A_re, CLIPPED_AT) if self.clip else self.A_re
        a, delta = lax.complex(real, self.A_im), jnp.exp(self.delta_log)
        factor = self.discretization.input_factor(a, delta)
        return self.discretization.transition(a, delta), factor * lax.complex(self.B_re, self.B_im)

    @property
    def bidirectional(self) -> bool:
        """Whether a second scan runs from the end."""
        return self.C_re.shape[0] == 2

    def __call__(self, x, *, train=False, key=None):
        def run(u):
            lam, b = self._driven(u)
            both = directions(self.bidirectional)
            return self._read([planar_recurrence(lam, b, reverse=reverse) for reverse in both], u)

        return over_sequences(self, x, run, "S5", self.width)

    def initial_state(self, batch: int) -> Complex[Array, "batch half"]:
        return jnp.zeros((batch, self.state // 2), jnp.complex64)

    def unroll(self, x, state, *, reset=None):
        check_one_way(self.bidirectional)
        lam, b = self._driven(x)
        h = planar_recurrence(lam, b, initial=as_planes(state), reset=reset)
        return self._read([h], x), as_complex(h[:, -1])

    def step(self, x, state, *, reset=None):
        check_one_way(self.bidirectional)
        check_step("S5", x, state, reset, self.width, (self.state // 2,))
        lam, b = self._driven(x)
        h = recurrence_step(lam, state, as_complex(b), reset=reset)
        return self._read([as_planes(h)], x), h

    def _driven(self, u: Array) -> tuple[Array, Array]:
        lam, weight = self.discrete()
        return lam, product_of_rows(u, as_planes(weight))

    def _read(self, states: list[Array], u: Array) -> Array:
        weights = 2 * jnp.concatenate((self.C_re, -self.C_im), axis=1)
        read = (product_of_rows(h, weight) for h, weight in zip(states, weights, strict=True))
        return sum(read, self.D * u)
