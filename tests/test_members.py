"""Work that is due now and then stays a branch under `vmap`, and is shared by all members."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax._transforms.members import any_member, where_needed

pytestmark = pytest.mark.usefixtures("quick_compilation")


def rooted(needed, x):
    """The square root where it is needed: what to look for in a program."""
    return where_needed(needed, lambda: jnp.sqrt(x), x)


def scanned(flags, x):
    return jax.lax.scan(lambda y, flag: (rooted(flag, y), y), x, flags)[0]


WRAPPED = {
    "jit": (jax.jit(rooted), ()),
    "vmap": (jax.vmap(rooted), (3,)),
    "vmap of jit": (jax.vmap(jax.jit(rooted)), (3,)),
    "jit of vmap": (jax.jit(jax.vmap(rooted)), (3,)),
    "vmap of vmap": (jax.vmap(jax.vmap(rooted)), (2, 3)),
    "vmap of jit of vmap": (jax.vmap(jax.jit(jax.vmap(rooted))), (2, 3)),
    "vmap of scan": (jax.vmap(scanned), (3, 4)),
    "vmap of vmap of scan": (jax.jit(jax.vmap(jax.vmap(scanned))), (2, 3, 4)),
}


def primitives(jaxpr, above=()):
    """Each primitive of a program, with those that it stands in."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, above
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                inside = getattr(inner, "jaxpr", inner)
                yield from primitives(inside, (*above, equation.primitive.name))


def numbers(name, shape):
    return jnp.full(shape[:-1] if name.endswith("scan") else shape, 4.0)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_work_stands_in_a_branch(name):
    function, shape = WRAPPED[name]
    program = jax.make_jaxpr(function)(jnp.zeros(shape, bool), numbers(name, shape))
    around = [above for primitive, above in primitives(program.jaxpr) if primitive == "sqrt"]
    assert around and all("cond" in above for above in around)


@pytest.mark.parametrize("name", WRAPPED)
def test_members_take_it_where_they_need_it(name):
    function, shape = WRAPPED[name]
    flags = jax.random.bernoulli(jax.random.key(0), 0.5, shape)
    times = flags.sum(-1) if name.endswith("scan") else flags.astype(int)
    expected = 4 ** (0.5**times)
    np.testing.assert_allclose(function(flags, numbers(name, shape)), expected, rtol=1e-6)


def test_one_member_s_flag_is_everyone_s():
    flags = jnp.array([[False, False], [False, True]])
    seen = jax.vmap(jax.vmap(any_member, out_axes=None), out_axes=None)(flags)
    assert seen.shape == () and bool(seen)
    assert not jax.vmap(any_member, out_axes=None)(flags[0])


def test_gradients_pass_where_the_flag_depends_on_what_they_are_taken_in():
    def total(x):
        return jnp.sum(jax.vmap(lambda member: rooted(member > 1, member))(x))

    np.testing.assert_allclose(jax.grad(total)(jnp.array([0.5, 4.0])), [1, 0.25])


def test_outside_of_a_program_it_is_decided_at_once():
    assert where_needed(jnp.array(False), lambda: pytest.fail("computed"), 1.0) == 1
