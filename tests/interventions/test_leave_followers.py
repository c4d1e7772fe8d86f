import jax

from intervention_states import KEY, aged_state, bits, changed
from neoteny.interventions import LeaveFollowers, Reset, Splice, reset


def test_all_but_the_followers_changes_as_without_it():
    state = aged_state()
    plain = reset(state, KEY, stages=("head",))
    alone = LeaveFollowers(Reset(("head",)))(state, KEY)
    followers = {name for name, _ in state.followers}
    assert followers
    for name in state.networks:
        expected = state if name in followers else plain
        assert bits(alone.networks[name]) == bits(expected.networks[name])
    assert bits(alone.optimizer) == bits(plain.optimizer)
    assert changed(state, plain) > changed(state, alone)


def test_it_reads_the_saves_of_what_it_holds_and_keeps_the_structure():
    assert LeaveFollowers(Splice("one", "two", 1)).saves == ("one", "two")
    state = aged_state()
    assert jax.tree.structure(LeaveFollowers(Reset(("head",)))(state, KEY)) == jax.tree.structure(state)
