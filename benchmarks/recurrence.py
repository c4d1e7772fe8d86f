"""The diagonal recurrence and a network made of it, against the published formulation with an associative scan.

    python benchmarks/recurrence.py [--part recurrence|training|growth ...] [--seconds S] [--rounds N] [--out FILE]
    python benchmarks/recurrence.py --write-notes FILE

All contestants are jitted JAX functions of one process that run in turn, block by block, A B C A B C; the first round
is dropped, medians and quartiles are over rounds, ratios are formed within a round. See recurrence.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from neoteny.networks.lru import LadderMixer, Rung
from neoteny.networks.recurrence import diagonal_recurrence
from neoteny.networks.residual_sequence import sequence_network

BATCH, LENGTH, STATE = 16, 1024, 128
NETWORK = {"batch": 8, "length": 1024, "channels": 3, "width": 128, "state": 96, "depth": 6, "classes": 10}
DROPOUT, RATE, DECAY = 0.1, 1e-3, 0.05
GROWTH = {"batch": 4, "state": 64, "lengths": tuple(256 * 2**n for n in range(7))}

NOTES = Path(__file__).with_name("recurrence.md")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

# Contestants ----------------------------------------------------------------------------------------------


def associative(lam, b):
    """The public formulation of the LRU: lam repeated over time, `jax.lax.associative_scan`, automatic derivatives."""

    def combine(first, second):
        return second[0] * first[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(combine, (jnp.broadcast_to(lam, b.shape), b), axis=1)[1]


def scanned(lam, b):
    """`jax.lax.scan` over time, automatic derivatives."""

    def step(h, x):
        h = lam * h + x
        return h, h

    h = jax.lax.scan(step, jnp.zeros_like(b[:, 0]), jnp.swapaxes(b, 0, 1))[1]
    return jnp.swapaxes(h, 0, 1)


RECURRENCES: dict[str, Callable] = {
    "neoteny": diagonal_recurrence,
    "neoteny, chunked": functools.partial(diagonal_recurrence, method="chunked"),
    "neoteny, associative": functools.partial(diagonal_recurrence, method="associative"),
    "neoteny, fft": functools.partial(diagonal_recurrence, method="fft"),
    "associative scan, autodiff": associative,
    "lax.scan, autodiff": scanned,
}


def both(recurrence: Callable, lam, b, g):
    """(h, dlam, db): a forward pass and the backward pass of the cotangent `g`."""
    h, pull = jax.vjp(recurrence, lam, b)
    return h, *pull(g)


def copies_forward(lam, b):
    """Read b, write as much: the least traffic of a forward pass."""
    return b * 2


def copies_both(lam, b, g):
    """Read b, write h; read g and h, write db: the least traffic of both passes, as two separate programs' worth."""
    h = b * 2
    # A barrier, or XLA would read b once for both.
    h = jax.lax.optimization_barrier(h)
    return h, h + g


# Measuring ------------------------------------------------------------------------------------------------


def _block(run: Callable, seconds: float) -> float:
    """Seconds a call, over calls that last at least `seconds`."""
    calls, start = 0, time.perf_counter()
    while True:
        jax.block_until_ready(run())
        calls += 1
        took = time.perf_counter() - start
        if took >= seconds:
            return took / calls


def in_turn(runs: dict[str, Callable], *, seconds: float, rounds: int, reference: str) -> dict[str, dict[str, Any]]:
    """Milliseconds of every contestant, and times that of `reference`, round by round."""
    for run in runs.values():
        jax.block_until_ready(run())
    taken = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            taken[name].append(_block(run, seconds))
    milliseconds = {name: 1e3 * np.asarray(values[1:]) for name, values in taken.items()}
    return {
        name: {"milliseconds": _spread(values), "times_reference": _spread(values / milliseconds[reference])}
        for name, values in milliseconds.items()
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "q1": float(q1), "q3": float(q3), "min": float(values.min())}


# The recurrence alone -------------------------------------------------------------------------------------


def _problem(batch: int, length: int, state: int):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)

    lam = draw(state)
    lam *= rng.uniform(0.9, 0.999, size=state) / np.abs(lam)
    return jnp.asarray(lam), jnp.asarray(draw(batch, length, state)), jnp.asarray(draw(batch, length, state))


def _exact(lam, b, g):
    """(h, dlam, db) in complex128."""
    lam, b, g = (np.asarray(x, complex) for x in (lam, b, g))
    h, d = np.zeros_like(b), np.zeros_like(b)
    state, passed = np.zeros_like(b[:, 0]), np.zeros_like(b[:, 0])
    for k in range(b.shape[1]):
        h[:, k] = state = lam * state + b[:, k]
    for k in reversed(range(b.shape[1])):
        d[:, k] = passed = lam * passed + g[:, k]
    return h, np.sum(h[:, :-1] * d[:, 1:], axis=(0, 1)), d


def _apart(ours, exact) -> float:
    return max(float(np.max(np.abs(np.asarray(a) - e)) / np.max(np.abs(e))) for a, e in zip(ours, exact, strict=True))


def measure_recurrence(seconds: float, rounds: int) -> dict[str, Any]:
    """Forward, and forward with backward; every contestant is compared with complex128 first."""
    lam, b, g = _problem(BATCH, LENGTH, STATE)
    exact = _exact(lam, b, g)
    forward = {name: jax.jit(run) for name, run in RECURRENCES.items()}
    backward = {name: jax.jit(functools.partial(both, run)) for name, run in RECURRENCES.items()}
    errors = {name: _apart(run(lam, b, g), exact) for name, run in backward.items()}
    forward["floor: copies of the same bytes"] = jax.jit(copies_forward)
    backward["floor: copies of the same bytes"] = jax.jit(copies_both)
    return {
        "sizes": {"batch": BATCH, "length": LENGTH, "state": STATE, "bytes_of_b": b.nbytes},
        "errors": errors,
        "forward": in_turn(
            {name: functools.partial(run, lam, b) for name, run in forward.items()},
            seconds=seconds,
            rounds=rounds,
            reference="neoteny",
        ),
        "forward_backward": in_turn(
            {name: functools.partial(run, lam, b, g) for name, run in backward.items()},
            seconds=seconds,
            rounds=rounds,
            reference="neoteny",
        ),
    }


# A training step ------------------------------------------------------------------------------------------


def published_network(parameters, statistics, x, key, rate):
    """The published formulation with the same public primitives: an example at a time under `vmap`, complex B and C,
    lam repeated over time, an associative scan; batch norm, GELU, dropout shared over time, GLU of two products.
    """
    x = x @ parameters["encoder"]["w"] + parameters["encoder"]["b"]
    moved = []
    for index, (p, s) in enumerate(zip(parameters["blocks"], statistics, strict=True)):
        mean, variance = jnp.mean(x, (0, 1)), jnp.var(x, (0, 1))
        moved.append({"mean": 0.9 * s["mean"] + 0.1 * mean, "variance": 0.9 * s["variance"] + 0.1 * variance})
        z = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * p["scale"] + p["bias"]
        z = jax.vmap(functools.partial(_published_lru, p))(z)
        z = _dropped(jax.nn.gelu(z), jax.random.fold_in(key, 2 * index), rate)
        z = (z @ p["w1"] + p["b1"]) * jax.nn.sigmoid(z @ p["w2"] + p["b2"])
        x = x + _dropped(z, jax.random.fold_in(key, 2 * index + 1), rate)
    return jnp.mean(x, axis=1) @ parameters["head"]["w"] + parameters["head"]["b"], moved


def _published_lru(p, u):
    lam = jnp.exp(-jnp.exp(p["nu_log"]) + 1j * jnp.exp(p["theta_log"]))
    b = (p["B_re"] + 1j * p["B_im"]) * jnp.exp(p["gamma_log"])[:, None]
    c = p["C_re"] + 1j * p["C_im"]
    elements = jnp.repeat(lam[None], u.shape[0], axis=0), jax.vmap(lambda row: b @ row)(u)

    def combine(first, second):
        return second[0] * first[0], second[0] * first[1] + second[1]

    h = jax.lax.associative_scan(combine, elements)[1]
    return jax.vmap(lambda state, row: (c @ state).real + p["D"] * row)(h, u)


def _dropped(x, key, rate):
    kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, x.shape[2]))
    return jnp.where(kept, x / (1 - rate), 0)


def _as_published(network) -> tuple[dict, list]:
    """neoteny's initial parameters in the published layout, so that both start from the same function."""
    blocks, statistics = [], []
    for stage in network.stages[1:-1]:
        mixer, glu = stage.mixer, stage.glu.dense
        w1, w2 = jnp.split(glu.weight.T, 2, axis=1)
        b1, b2 = jnp.split(glu.bias, 2)
        blocks.append(
            {
                "nu_log": mixer.eigenvalues.nu_log,
                "theta_log": mixer.eigenvalues.theta_log,
                "gamma_log": mixer.gamma_log,
                "B_re": mixer.B_re.T,
                "B_im": mixer.B_im.T,
                "C_re": mixer.C_re[0].T,
                "C_im": mixer.C_im[0].T,
                "D": mixer.D,
                "scale": stage.norm.scale,
                "bias": stage.norm.bias,
                "w1": w1,
                "w2": w2,
                "b1": b1,
                "b2": b2,
            }
        )
        statistics.append({"mean": stage.norm.mean.value, "variance": stage.norm.variance.value})
    encoder, head = network.stages[0].layer, network.stages[-1].layers[-1]
    parameters = {
        "encoder": {"w": encoder.weight.T, "b": encoder.bias},
        "head": {"w": head.weight.T, "b": head.bias},
        "blocks": blocks,
    }
    return parameters, statistics


def measure_training(seconds: float, rounds: int) -> dict[str, Any]:
    """A whole update of a six-layer network on sequences of colour pixels: forward, backward, AdamW."""
    sizes, key = NETWORK, jax.random.key(0)
    make = functools.partial(
        sequence_network,
        LadderMixer(Rung.LRU, sizes["state"], r_min=0.9, r_max=0.999),
        encoder=sizes["channels"],
        width=sizes["width"],
        depth=sizes["depth"],
        head=sizes["classes"],
    )
    network = make(dropout=DROPOUT)(key)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((sizes["batch"], sizes["length"], sizes["channels"])), jnp.float32)
    labels = jnp.asarray(rng.integers(sizes["classes"], size=sizes["batch"]), jnp.int32)
    optimizer = optax.adamw(RATE, weight_decay=DECAY)

    def cross_entropy(logits):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    trained, fixed = eqx.partition(network, eqx.is_inexact_array)

    def ours(trained, state, key):
        def loss(trained):
            done = eqx.combine(trained, fixed)(x, train=True, key=key)
            return cross_entropy(done.output), eqx.filter(done.network, eqx.is_inexact_array)

        (value, trained), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, state = optimizer.update(gradients, state, trained)
        return optax.apply_updates(trained, updates), state, value

    def theirs(carry, state, key):
        parameters, statistics = carry

        def loss(parameters):
            logits, moved = published_network(parameters, statistics, x, key, DROPOUT)
            return cross_entropy(logits), moved

        (value, moved), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, state = optimizer.update(gradients, state, parameters)
        return (optax.apply_updates(parameters, updates), moved), state, value

    published = _as_published(network)
    # The same function of the same weights, compared without dropout, whose keys differ.
    their_logits = jax.jit(published_network, static_argnames="rate")(*published, x, key, rate=0.0)[0]
    our_logits = jax.jit(lambda x: make(dropout=0.0)(key)(x, train=True).output)(x)
    apart = float(jnp.max(jnp.abs(our_logits - their_logits)) / jnp.max(jnp.abs(their_logits)))
    runs = {
        "neoteny": functools.partial(jax.jit(ours), trained, optimizer.init(trained), key),
        "published formulation": functools.partial(jax.jit(theirs), published, optimizer.init(published[0]), key),
    }
    measured = in_turn(runs, seconds=seconds, rounds=rounds, reference="neoteny")
    return {"sizes": sizes, "logits_apart": apart, "contestants": measured}


# Growth with length ---------------------------------------------------------------------------------------


def measure_growth(seconds: float, rounds: int) -> dict[str, Any]:
    """Time and temporary memory of both passes by length, and the exponents of their growth."""
    rows = []
    for length in GROWTH["lengths"]:
        lam, b, g = _problem(GROWTH["batch"], length, GROWTH["state"])
        row = {"length": length}
        for name in ("neoteny", "associative scan, autodiff"):
            compiled = jax.jit(functools.partial(both, RECURRENCES[name])).lower(lam, b, g).compile()
            memory = compiled.memory_analysis()
            values = [_block(functools.partial(compiled, lam, b, g), seconds) for _ in range(rounds + 1)][1:]
            row[name] = {
                "milliseconds": float(1e3 * np.median(values)),
                "megabytes": (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6,
            }
        rows.append(row)
    logs = np.log([row["length"] for row in rows])
    exponents = {
        name: {what: float(np.polyfit(logs, np.log([row[name][what] for row in rows]), 1)[0]) for what in rows[0][name]}
        for name in ("neoteny", "associative scan, autodiff")
    }
    return {"batch": GROWTH["batch"], "state": GROWTH["state"], "rows": rows, "exponents": exponents}


# Showing --------------------------------------------------------------------------------------------------


def _time(entry: dict[str, Any]) -> str:
    ms = entry["milliseconds"]
    return f"{ms['median']:.2f} ({ms['q1']:.2f} to {ms['q3']:.2f}; {ms['min']:.2f})"


def tables(results: dict[str, Any]) -> str:
    """All results as Markdown."""
    parts = [
        f"Measured {results['date']} on {results['machine']} ({results['cores']} cores), "
        f"jax {results['jax']}; {results['rounds']} rounds of {results['seconds']} s blocks. Milliseconds: median "
        "(quartiles; least); ratios to neoteny are formed within a round."
    ]
    if "recurrence" in results:
        r = results["recurrence"]
        parts += [
            f"**Recurrence**, batch {BATCH}, length {LENGTH}, {STATE} complex channels.",
            "| contestant | forward, ms | times neoteny's | forward + backward, ms | times neoteny's "
            "| error to complex128 |\n|---|---|---|---|---|---|\n"
            + "\n".join(
                f"| {name} | {_time(r['forward'][name])} | {r['forward'][name]['times_reference']['median']:.2f} "
                f"| {_time(entry)} | {entry['times_reference']['median']:.2f} "
                f"| {r['errors'][name] if name in r['errors'] else float('nan'):.0e} |".replace("nan", "")
                for name, entry in r["forward_backward"].items()
            ),
        ]
    if "training" in results:
        t = results["training"]
        parts += [
            f"**Training step**, {', '.join(f'{name} {value}' for name, value in t['sizes'].items())}; logits of equal "
            f"weights differ by {t['logits_apart']:.0e}.",
            "| contestant | ms | times neoteny's |\n|---|---|---|\n"
            + "\n".join(
                f"| {name} | {_time(entry)} | {entry['times_reference']['median']:.2f} |"
                for name, entry in t["contestants"].items()
            ),
        ]
    if "growth" in results:
        g = results["growth"]
        names = list(g["exponents"])
        parts += [
            f"**Growth with length**, forward + backward, batch {g['batch']}, {g['state']} complex channels; megabytes "
            "are XLA's temporary and output buffers.",
            "| length | "
            + " | ".join(f"{name}, ms | MB" for name in names)
            + " |\n|"
            + "---|" * (1 + 2 * len(names))
            + "\n"
            + "\n".join(
                f"| {row['length']} | "
                + " | ".join(f"{row[name]['milliseconds']:.2f} | {row[name]['megabytes']:.1f}" for name in names)
                + " |"
                for row in g["rows"]
            )
            + "\n| exponent | "
            + " | ".join(
                f"{g['exponents'][name]['milliseconds']:.2f} | {g['exponents'][name]['megabytes']:.2f}"
                for name in names
            )
            + " |",
        ]
    return "\n\n".join(parts)


def write_notes(results: dict[str, Any]) -> None:
    """Put the tables between the markers of recurrence.md."""
    before, rest = NOTES.read_text().split(BEGIN)
    after = rest.split(END)[1]
    NOTES.write_text(f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{after}")


def main() -> None:
    measures = {"recurrence": measure_recurrence, "training": measure_training, "growth": measure_growth}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(measures), default=list(measures))
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a block")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write-notes", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.write_notes:
        write_notes(json.loads(options.write_notes.read_text()))
        return
    results: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "jax": metadata.version("jax"),
        "seconds": options.seconds,
        "rounds": options.rounds,
    }
    for part in options.part:
        results[part] = measures[part](options.seconds, options.rounds)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1))
    print(tables(results))


if __name__ == "__main__":
    main()
