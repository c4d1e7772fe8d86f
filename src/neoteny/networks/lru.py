"""The Linear Recurrent Unit and the ladder of recurrent layers that leads to it (Orvieto et al. 2023).

    h_k = lam * h_{k-1} + gamma * (B u_k),    y_k = Re(C h_k) + D * u_k

From a dense tanh network, rung by rung: no nonlinearity, a complex diagonal, an exponential parameterisation, a stable
one, eigenvalues initialised on a ring, the normalisation gamma, a small range of phases.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from neoteny.networks._checks import positive
from neoteny.networks.activations import ActivationFunction, check_activation, identity, relu, tanh
from neoteny.networks.dense import product_of_rows
from neoteny.networks.initializers import named_key
from neoteny.networks.network import Layer
from neoteny.networks.recurrence import planar_recurrence, recurrence_step
from neoteny.networks.recurrence_kernels import as_complex, as_planes
from neoteny.networks.recurrent import RecurrentLayer, check_one_way, check_step, directions, kept, over_sequences

Scalar = float | Float[Array, ""]
"""A number, or a traced one where it is a lane's."""

MARGIN = 1e-6
"""Uniform draws stay this far from 0 and 1, where logarithms of radius and phase would be infinite."""

# Eigenvalues ----------------------------------------------------------------------------------------------


class Cartesian(eqx.Module):
    """lam = lam_re + i lam_im."""

    lam_re: Float[Array, " state"]
    lam_im: Float[Array, " state"]

    def __call__(self) -> Complex[Array, " state"]:
        return lax.complex(self.lam_re, self.lam_im)


class Exponential(eqx.Module):
    """lam = exp(-nu + i theta), nu free: |lam| may grow beyond 1 (Orvieto et al. 2023, section 3.3)."""

    nu: Float[Array, " state"]
    theta: Float[Array, " state"]

    def __call__(self) -> Complex[Array, " state"]:
        return _polar(self.nu, self.theta)


class StableExponential(eqx.Module):
    """lam = exp(-exp(nu_log) + i exp(theta_log)): |lam| < 1 whatever the parameters (eq. 8)."""

    nu_log: Float[Array, " state"]
    theta_log: Float[Array, " state"]

    def __call__(self) -> Complex[Array, " state"]:
        return _polar(jnp.exp(self.nu_log), jnp.exp(self.theta_log))


Eigenvalues = Cartesian | Exponential | StableExponential


def _polar(nu: Array, theta: Array) -> Array:
    modulus = jnp.exp(-nu)
    return lax.complex(modulus * jnp.cos(theta), modulus * jnp.sin(theta))


class Parameterization(enum.Enum):
    """What of the eigenvalues is trained."""

    CARTESIAN = "cartesian"
    EXPONENTIAL = "exponential"
    STABLE = "stable"

    def __call__(self, nu: Array, theta: Array) -> Eigenvalues:
        """The eigenvalues exp(-nu + i theta) in this parameterisation."""
        match self:
            case Parameterization.CARTESIAN:
                lam = _polar(nu, theta)
                return Cartesian(lam.real, lam.imag)
            case Parameterization.EXPONENTIAL:
                return Exponential(nu, theta)
            case Parameterization.STABLE:
                return StableExponential(jnp.log(nu), jnp.log(theta))


def ring(
    key: PRNGKeyArray, state: int, *, r_min: Scalar = 0.0, r_max: Scalar = 1.0, max_phase: Scalar = 2 * math.pi
) -> tuple[Float[Array, " state"], Float[Array, " state"]]:
    """(nu, theta) of eigenvalues exp(-nu + i theta) uniform in area on the ring r_min <= |lam| <= r_max, with phases
    uniform in [0, max_phase] (Orvieto et al. 2023, lemma 3.2).

    nu is computed from 1 - |lam|^2 where |lam| is near 1, and from |lam|^2 elsewhere: float32 holds neither for both.
    """
    _check_ring(r_min, r_max, max_phase)

    def uniform(name):
        return jax.random.uniform(named_key(key, name), (state,), jnp.float32, MARGIN, 1 - MARGIN)

    # The share of the ring's area outside the eigenvalue is drawn, so that |lam| near 1 keeps its digits.
    outside, span = uniform("radius"), (r_max - r_min) * (r_max + r_min)
    missing = (1 - r_max) * (1 + r_max) + outside * span
    nu = -0.5 * jnp.where(missing < 0.5, jnp.log1p(-missing), jnp.log(r_max * r_max - outside * span))
    return nu, max_phase * uniform("phase")


def _check_ring(r_min: Scalar, r_max: Scalar, max_phase: Scalar) -> None:
    """ValueError for numbers no ring has; traced ones are not looked at."""
    if isinstance(r_min, int | float) and isinstance(r_max, int | float) and not 0 <= r_min <= r_max <= 1:
        raise ValueError(f"radii must satisfy 0 <= r_min <= r_max <= 1; got {r_min} and {r_max}")
    if isinstance(r_max, int | float) and r_max == 0:
        raise ValueError("r_max must be positive: all eigenvalues would be 0, whose logarithm is infinite")
    if isinstance(r_min, int | float) and r_min == 1:
        raise ValueError("r_min must be below 1: on the unit circle nothing decays, and log nu is infinite")
    if isinstance(max_phase, int | float) and not max_phase > 0:
        raise ValueError(f"max_phase, in radians, must be positive; got {max_phase}")


def gamma_log_of(nu: Float[Array, " state"]) -> Float[Array, " state"]:
    """log sqrt(1 - |lam|^2) with |lam| = exp(-nu) (eq. 9), without the cancellation of 1 - |lam|^2 near 1."""
    return 0.5 * jnp.log(-jnp.expm1(-2 * nu))


class InitScale(enum.Enum):
    """Variances of the entries of B and C at initialisation, for width H and state N.

    PUBLISHED_CODE: real and imaginary parts of B N(0, 1 / (2 H)), of C N(0, 1 / N), as in minimal-LRU. PAPER_TEXT:
    those of Glorot, 2 / (H + N), halved for each part, and B's doubled again since the real part is taken.
    """

    PUBLISHED_CODE = "published_code"
    PAPER_TEXT = "paper_text"

    def deviations(self, width: int, state: int) -> tuple[float, float]:
        """Standard deviations of each part of B and of C."""
        match self:
            case InitScale.PUBLISHED_CODE:
                return math.sqrt(1 / (2 * width)), math.sqrt(1 / state)
            case InitScale.PAPER_TEXT:
                return math.sqrt(2 / (width + state)), math.sqrt(1 / (width + state))


# Layers ---------------------------------------------------------------------------------------------------


class LRU(RecurrentLayer):
    """h_k = lam * h_{k-1} + gamma * (B u_k), y_k = Re(C h_k) + D * u_k on sequences (batch, length, width).

    `gamma=False` leaves the normalisation out; `parameterization` says what of lam is trained. With `bidirectional` a
    second scan with the same lam and B runs from the end, and C reads both. Real and imaginary parts are separate
    arrays, so that an optimiser's second moments are right. ValueError for sizes or rings that are none.
    """

    slow = frozenset({"eigenvalues", "gamma_log", "B_re", "B_im"})

    eigenvalues: Eigenvalues
    gamma_log: Float[Array, " state"] | None
    B_re: Float[Array, "width state"]
    B_im: Float[Array, "width state"]
    C_re: Float[Array, "directions state width"]
    C_im: Float[Array, "directions state width"]
    D: Float[Array, " width"]
    width: int = eqx.field(static=True)
    state: int = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        state: int,
        *,
        key: PRNGKeyArray,
        r_min: Scalar = 0.0,
        r_max: Scalar = 1.0,
        max_phase: Scalar = 2 * math.pi,
        gamma: bool = True,
        parameterization: Parameterization | str = Parameterization.STABLE,
        bidirectional: bool = False,
        init_scale: InitScale | str = InitScale.PUBLISHED_CODE,
    ):
        self.width, self.state = positive(width, "width"), positive(state, "state")
        nu, theta = ring(named_key(key, "eigenvalues"), self.state, r_min=r_min, r_max=r_max, max_phase=max_phase)
        self.eigenvalues = Parameterization(parameterization)(nu, theta)
        self.gamma_log = gamma_log_of(nu) if gamma else None
        deviation_b, deviation_c = InitScale(init_scale).deviations(self.width, self.state)

        def normal(name, shape, deviation):
            return deviation * jax.random.normal(named_key(key, name), shape, jnp.float32)

        shape_c = (2 if bidirectional else 1, self.state, self.width)
        self.B_re = normal("B_re", (self.width, self.state), deviation_b)
        self.B_im = normal("B_im", (self.width, self.state), deviation_b)
        self.C_re = normal("C_re", shape_c, deviation_c)
        self.C_im = normal("C_im", shape_c, deviation_c)
        self.D = normal("D", (self.width,), 1.0)

    @property
    def bidirectional(self) -> bool:
        """Whether a second scan runs from the end."""
        return self.C_re.shape[0] == 2

    @property
    def lam(self) -> Complex[Array, " state"]:
        """The eigenvalues."""
        return self.eigenvalues()

    def __call__(self, x, *, train=False, key=None):
        def run(u):
            b, both = self._driven(u), directions(self.bidirectional)
            return self._read([planar_recurrence(self.lam, b, reverse=reverse) for reverse in both], u)

        return over_sequences(self, x, run, "LRU", self.width)

    def initial_state(self, batch: int) -> Complex[Array, "batch state"]:
        return jnp.zeros((batch, self.state), jnp.complex64)

    def unroll(self, x, state, *, reset=None):
        check_one_way(self.bidirectional)
        h = planar_recurrence(self.lam, self._driven(x), initial=as_planes(state), reset=reset)
        return self._read([h], x), as_complex(h[:, -1])

    def step(self, x, state, *, reset=None):
        check_one_way(self.bidirectional)
        check_step("LRU", x, state, reset, self.width, (self.state,))
        h = recurrence_step(self.lam, state, as_complex(self._driven(x)), reset=reset)
        return self._read([as_planes(h)], x), h

    def states(self, u: Float[Array, "batch length width"]) -> Complex[Array, "batch length state"]:
        """The states h of sequences, forwards."""
        return as_complex(planar_recurrence(self.lam, self._driven(u)))

    def _driven(self, u: Array) -> Array:
        """gamma * (B u) in planes: one real product for both parts, with gamma in the small factor."""
        weight = jnp.stack((self.B_re, self.B_im), axis=1)
        if self.gamma_log is not None:
            weight = weight * jnp.exp(self.gamma_log)
        return product_of_rows(u, weight.reshape(self.width, 2 * self.state))

    def _read(self, states: list[Array], u: Array) -> Array:
        """Re(C h) + D u of the states in planes: one real product a direction."""
        weights = jnp.concatenate((self.C_re, -self.C_im), axis=1)
        read = (product_of_rows(h, weight) for h, weight in zip(states, weights, strict=True))
        return sum(read, self.D * u)


def within_radius(matrix: Float[Array, "n n"], radius: float) -> Float[Array, "n n"]:
    """`matrix` divided by what its spectral radius exceeds `radius` by as a factor; as it is where it does not."""
    largest = jnp.max(jnp.abs(jnp.linalg.eigvals(matrix)))
    return matrix / jnp.maximum(largest / radius, 1.0)


class DenseRecurrence(RecurrentLayer):
    """h_k = activation(A h_{k-1} + B u_k), y_k = C h_k + D * u_k, all real: the first rungs of the ladder.

    A is Gaussian of variance 1 / state, so that its eigenvalues fill the unit disk, and is divided by its spectral
    radius where that is above `max_radius` (None: never). That of a Gaussian matrix is a few per cent above 1 (1.05 at
    64 states), and 1.05^4096 overflows: without an activation that bounds it the state would leave float32 before any
    training. The paper has no such step. Entries of B have variance 1 / width, of C 1 / state, of D 1. With
    `bidirectional` a second scan with the same A and B runs from the end, and a second C reads it.
    """

    slow = frozenset({"A", "B"})

    A: Float[Array, "state state"]
    B: Float[Array, "width state"]
    C: Float[Array, "directions state width"]
    D: Float[Array, " width"]
    activation: ActivationFunction = eqx.field(static=True)
    width: int = eqx.field(static=True)
    state: int = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        state: int,
        activation: ActivationFunction = tanh,
        *,
        key: PRNGKeyArray,
        bidirectional: bool = False,
        max_radius: float | None = 1.0,
    ):
        self.width, self.state = positive(width, "width"), positive(state, "state")
        self.activation = check_activation(activation)
        if max_radius is not None and not max_radius > 0:
            raise ValueError(f"max_radius must be positive, or None for the matrix as it is drawn; got {max_radius}")

        def normal(name, shape, fan_in):
            return jax.random.normal(named_key(key, name), shape, jnp.float32) / math.sqrt(fan_in)

        drawn = normal("A", (self.state, self.state), self.state)
        self.A = drawn if max_radius is None else within_radius(drawn, max_radius)
        self.B = normal("B", (self.width, self.state), self.width)
        self.C = normal("C", (2 if bidirectional else 1, self.state, self.width), self.state)
        self.D = normal("D", (self.width,), 1)

    @property
    def bidirectional(self) -> bool:
        """Whether a second scan runs from the end."""
        return self.C.shape[0] == 2

    def __call__(self, x, *, train=False, key=None):
        def run(u):
            start, both = self.initial_state(u.shape[0]), directions(self.bidirectional)
            return self._read([self._scanned(u, start, reverse=reverse)[0] for reverse in both], u)

        return over_sequences(self, x, run, "DenseRecurrence", self.width)

    def initial_state(self, batch: int) -> Float[Array, "batch state"]:
        return jnp.zeros((batch, self.state), jnp.float32)

    def unroll(self, x, state, *, reset=None):
        check_one_way(self.bidirectional)
        h, state = self._scanned(x, state, reset=reset)
        return self._read([h], x), state

    def step(self, x, state, *, reset=None):
        check_one_way(self.bidirectional)
        check_step("DenseRecurrence", x, state, reset, self.width, (self.state,))
        h = self.activation(kept(reset, state) @ self.A + x @ self.B)
        return self._read([h], x), h

    def _scanned(
        self, u: Array, state: Array, *, reset: Array | None = None, reverse: bool = False
    ) -> tuple[Array, Array]:
        """The states of all steps, and the last one to be computed."""

        def step(h, driven):
            b, cut = driven
            h = self.activation(kept(cut, h) @ self.A + b)
            return h, h

        cuts = None if reset is None else reset.T
        driven = jnp.swapaxes(product_of_rows(u, self.B), 0, 1)
        state, h = lax.scan(step, state, (driven, cuts), reverse=reverse)
        return jnp.swapaxes(h, 0, 1), state

    def _read(self, states: list[Array], u: Array) -> Array:
        """C h + D u, summed over the directions."""
        return sum((product_of_rows(h, c) for h, c in zip(states, self.C, strict=True)), self.D * u)


# The ladder -----------------------------------------------------------------------------------------------


class Rung(enum.Enum):
    """The steps from a dense recurrent network to the Linear Recurrent Unit, in the paper's order (section 3).

    Up to STABLE eigenvalues start uniform on the unit disk, as those of a dense Gaussian matrix do; RING is STABLE on a
    ring that is chosen, LRU adds gamma, SMALL_PHASE a range of phases.
    """

    DENSE_TANH = "dense_tanh"
    DENSE_RELU = "dense_relu"
    DENSE_LINEAR = "dense_linear"
    DIAGONAL = "diagonal"
    EXPONENTIAL = "exponential"
    STABLE = "stable"
    RING = "ring"
    LRU = "lru"
    SMALL_PHASE = "small_phase"


SMALL_PHASE = math.pi / 10
"""The largest phase of PathX (Orvieto et al. 2023, table 10)."""


@dataclass(frozen=True)
class LadderMixer:
    """A mixer of one rung: `LadderMixer(Rung.LRU, state, r_min=0.9, r_max=0.999)(width, key)` is the layer.

    Radii and phase hold for every diagonal rung, since the paper compares some of them on one ring (figure 3); the
    whole unit disk is the default. `max_phase` None is 2 pi, and `SMALL_PHASE` for the rung of that name. Traced
    numbers are welcome.
    """

    rung: Rung | str
    state: int
    r_min: Scalar = 0.0
    r_max: Scalar = 1.0
    max_phase: Scalar | None = None
    bidirectional: bool = False

    def __post_init__(self):
        object.__setattr__(self, "rung", Rung(self.rung))

    def __call__(self, width: int, key: PRNGKeyArray) -> Layer:
        rung = Rung(self.rung)
        dense = {Rung.DENSE_TANH: tanh, Rung.DENSE_RELU: relu, Rung.DENSE_LINEAR: identity}
        if rung in dense:
            return DenseRecurrence(width, self.state, dense[rung], key=key, bidirectional=self.bidirectional)
        parameterizations = {
            Rung.DIAGONAL: Parameterization.CARTESIAN,
            Rung.EXPONENTIAL: Parameterization.EXPONENTIAL,
        }
        widest = SMALL_PHASE if rung is Rung.SMALL_PHASE else 2 * math.pi
        return LRU(
            width,
            self.state,
            key=key,
            r_min=self.r_min,
            r_max=self.r_max,
            max_phase=widest if self.max_phase is None else self.max_phase,
            gamma=rung in (Rung.LRU, Rung.SMALL_PHASE),
            parameterization=parameterizations.get(rung, Parameterization.STABLE),
            bidirectional=self.bidirectional,
        )
