"""S4D: one diagonal state-space system for every channel (Gu, Goel, Gupta & Re 2022), after its public code.

    x' = A x + B u,  y = 2 Re(C x) + D u,   A_n = -exp(A_re_log) + i A_im,   one step of length Delta at a time

A whole sequence is one causal convolution with the kernel K[l] = 2 Re sum_n C_n Bbar_n Abar_n^l.
"""

from __future__ import annotations

import enum
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from neoteny.networks._checks import positive
from neoteny.networks.initializers import named_key
from neoteny.networks.recurrence import diagonal_recurrence
from neoteny.networks.recurrence_kernels import causal_convolution
from neoteny.networks.recurrent import RecurrentLayer, check_one_way, check_step, kept, over_sequences

STEP_RANGE = (1e-3, 1e-1)
"""Range of the time step Delta at initialisation, uniform in its logarithm (Gu et al. 2022, section 4)."""


def hippo_legs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (size,) and eigenvectors (size, size) of the normal part of HiPPO-LegS, complex128.

    With A_nk = -sqrt((2n+1)(2k+1)) below the diagonal and -(n+1) on it, S = A + P P^T with P_n = sqrt(n + 1/2) is -1/2
    plus a skew-symmetric matrix: all real parts are -1/2, and the imaginary parts come from a Hermitian solver, in
    increasing order.
    """
    n = np.arange(size)
    product = np.sqrt(np.outer(2 * n + 1, 2 * n + 1))
    skew = np.where(n[:, None] > n, -product, np.where(n[:, None] < n, product, 0)) / 2
    imaginary, vectors = np.linalg.eigh(-1j * skew)
    return -0.5 + 1j * imaginary, vectors


class Spectrum(enum.Enum):
    """Eigenvalues A_n at initialisation; `states` stored, their conjugates implied.

    LEGS: those of HiPPO-LegS of size 2 states with a positive imaginary part. LINEAR: -1/2 + i pi n. INVERSE:
    -1/2 + i (N / pi)(N / (2n + 1) - 1) with N = 2 states.
    """

    LEGS = "legs"
    LINEAR = "linear"
    INVERSE = "inverse"

    def __call__(self, states: int) -> np.ndarray:
        """(states,), complex128."""
        n, size = np.arange(states), 2 * states
        match self:
            case Spectrum.LEGS:
                return hippo_legs(size)[0][states:]
            case Spectrum.LINEAR:
                return -0.5 + 1j * np.pi * n
            case Spectrum.INVERSE:
                return -0.5 + 1j * size / np.pi * (size / (2 * n + 1) - 1)


class Discretization(enum.Enum):
    """How one step of length Delta is taken: (Abar, factor of B).

    ZOH: exp(Delta A) and (exp(Delta A) - 1) / A, the input held during a step. DELTA_B: the same Abar with Delta
    itself. BILINEAR: (1 + Delta A / 2) / (1 - Delta A / 2) and Delta / (1 - Delta A / 2).
    """

    ZOH = "zoh"
    DELTA_B = "delta_b"
    BILINEAR = "bilinear"

    def transition(self, a: Array, delta: Array) -> Array:
        """Abar."""
        if self is Discretization.BILINEAR:
            return (1 + delta * a / 2) / (1 - delta * a / 2)
        return jnp.exp(delta * a)

    def input_factor(self, a: Array, delta: Array) -> Array:
        """What B is multiplied by; complex like A."""
        match self:
            case Discretization.ZOH:
                return jnp.expm1(delta * a) / a
            case Discretization.DELTA_B:
                return delta + 0 * a
            case Discretization.BILINEAR:
                return delta / (1 - delta * a / 2)


def log_steps(key: PRNGKeyArray, shape: tuple[int, ...], low: float, high: float) -> Array:
    """log Delta ~ U[log low, log high]."""
    return jax.random.uniform(key, shape, jnp.float32, math.log(low), math.log(high))


class S4D(RecurrentLayer):
    """For every channel a system of `state` complex states, half of them stored: (batch, length, width) to the same.

    C is standard complex normal and takes B = 1 in, D standard normal. `tied` False trains the Delta of B by itself.
    BILINEAR steps work too. With `bidirectional` the same systems also run from the end, and a second C reads them; as
    in the other recurrent layers here both directions see the present step, which the backward kernel of the public
    code leaves to the forward one. ValueError for an odd `state`.
    """

    slow = frozenset({"A_re_log", "A_im", "delta_log", "delta_B_log"})

    A_re_log: Float[Array, "width half"]
    A_im: Float[Array, "width half"]
    delta_log: Float[Array, "width 1"]
    delta_B_log: Float[Array, "width 1"] | None
    C_re: Float[Array, "directions width half"]
    C_im: Float[Array, "directions width half"]
    D: Float[Array, " width"]
    width: int = eqx.field(static=True)
    state: int = eqx.field(static=True)
    discretization: Discretization = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        state: int,
        *,
        key: PRNGKeyArray,
        spectrum: Spectrum = Spectrum.LEGS,
        discretization: Discretization = Discretization.ZOH,
        tied: bool = True,
        bidirectional: bool = False,
    ):
        self.width, self.state = positive(width, "width"), positive(state, "state")
        half = _half(self.state)
        self.discretization = Discretization(discretization)
        a = np.broadcast_to(Spectrum(spectrum)(half), (self.width, half))
        self.A_re_log = jnp.asarray(np.log(-np.real(a)), jnp.float32)
        self.A_im = jnp.asarray(np.imag(a), jnp.float32)
        self.delta_log = log_steps(named_key(key, "delta"), (self.width, 1), *STEP_RANGE)
        self.delta_B_log = None if tied else jnp.array(self.delta_log)
        shape_c = (2, 2 if bidirectional else 1, self.width, half)
        c = math.sqrt(0.5) * jax.random.normal(named_key(key, "C"), shape_c, jnp.float32)
        self.C_re, self.C_im = c[0], c[1]
        self.D = jax.random.normal(named_key(key, "D"), (self.width,), jnp.float32)

    @property
    def bidirectional(self) -> bool:
        """Whether the systems run from the end too."""
        return self.C_re.shape[0] == 2

    def discrete(self) -> tuple[Complex[Array, "width half"], Complex[Array, "directions width half"]]:
        """(Abar, C Bbar)."""
        a = jax.lax.complex(-jnp.exp(self.A_re_log), self.A_im)
        of_b = self.delta_log if self.delta_B_log is None else self.delta_B_log
        factor = self.discretization.input_factor(a, jnp.exp(of_b))
        return (
            self.discretization.transition(a, jnp.exp(self.delta_log)),
            jax.lax.complex(self.C_re, self.C_im) * factor,
        )

    def kernel(self, length: int) -> Float[Array, "directions length width"]:
        """K[l] = 2 Re sum_n C_n Bbar_n Abar_n^l, l = 0 .. length - 1, of each direction."""
        transition, weight = self.discrete()
        # exp(l log Abar): no error is carried from power to power, and Abar is never 0.
        powers = jnp.exp(jnp.log(transition) * jnp.arange(length, dtype=jnp.float32)[:, None, None])
        return 2 * jnp.sum((powers * weight[:, None]).real, axis=-1)

    def __call__(self, x, *, train=False, key=None):
        def run(u):
            kernels = self.kernel(u.shape[1])
            y = causal_convolution(kernels[0], u) + self.D * u
            return y + causal_convolution(kernels[1], u[:, ::-1])[:, ::-1] if self.bidirectional else y

        return over_sequences(self, x, run, "S4D", self.width)

    def initial_state(self, batch: int) -> Complex[Array, "batch width half"]:
        return jnp.zeros((batch, self.width, self.state // 2), jnp.complex64)

    def unroll(self, x, state, *, reset=None):
        check_one_way(self.bidirectional)
        transition, weight = self.discrete()
        batch, length, _ = x.shape
        driven = jnp.broadcast_to(x[..., None], (*x.shape, self.state // 2)).reshape(batch, length, -1)
        h = diagonal_recurrence(transition.reshape(-1), driven, initial=state.reshape(batch, -1), reset=reset)
        h = h.reshape(batch, length, self.width, -1)
        return 2 * jnp.sum((weight[0] * h).real, axis=-1) + self.D * x, h[:, -1]

    def step(self, x, state, *, reset=None):
        check_one_way(self.bidirectional)
        check_step("S4D", x, state, reset, self.width, (self.width, self.state // 2))
        transition, weight = self.discrete()
        h = transition * kept(reset, state) + x[..., None]
        return 2 * jnp.sum((weight[0] * h).real, axis=-1) + self.D * x, h


def _half(state: int) -> int:
    if state % 2:
        raise ValueError(f"state counts conjugate pairs, so it must be even; got {state}")
    return state // 2
