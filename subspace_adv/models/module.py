"""Architecture "package.module:Class": a flax linen module of the user's own, R^d → R."""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen
from jax.tree_util import Partial

from subspace_adv.contracts import Architecture, Design, Model, named
from subspace_adv.errors import UserError, brief
from subspace_adv.models import autodiff, chain
from subspace_adv.models.rays import absolute, linear_part
from subspace_adv.models.splitting import AffineMap, split

ANY_CLASS = "package.module:Class"
"""Name of the row, and the form of the names of its architectures."""
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
ASKED = ("width", "depth")  # what a class is told of a cell's settings, if it has a field of the name

_classes: dict[str, type[linen.Module]] = {}


def is_class_name(value: object) -> bool:
    """Whether a value has the form of the name of a class."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def hand_over(name: str, given: Any) -> type[linen.Module]:
    """Take a class for that of a name.

    Raises:
        UserError: if it is none of linen modules.
    """
    if not (isinstance(given, type) and issubclass(given, linen.Module)):
        told = f"must be a class of flax.linen.Module, not {getattr(given, '__name__', brief(given))}"
        raise UserError(f"architecture {name!r}: {told}")
    if _classes.setdefault(name, given) is not given:
        raise UserError(f"architecture {name!r}: another class of this name is in use already; start anew for this one")
    return given


def is_known(name: str) -> bool:
    """Whether the class of a name was handed over in this process."""
    return name in _classes


def class_of(name: str) -> type[linen.Module]:
    """The class of a name.

    Raises:
        UserError: if it was not handed over.
    """
    if name not in _classes:
        raise UserError(f"architecture {name!r}: nothing is imported because results name it; hand its class over")
    return _classes[name]


@functools.lru_cache(maxsize=256)
def model(design: Design) -> Model:
    """Networks of a class, made with the width and the depth where it has fields of these names.

    They are drawn as the class draws them, with the weights, arrays of two dimensions or more, times init_scale. What
    of them is off the data is not known, so they train and are measured in R^d. Where `split` finds affine maps with
    ReLUs between, rays are crossed exactly and distances certified; else rays are scanned, and nothing is certified.

    Raises:
        UserError: if there is no such class, or it is not R^d → R.
    """
    module = instance(design)
    point = jax.ShapeDtypeStruct((design.ambient_dim,), jnp.float32)
    shapes = _shapes_of(design, module, point)
    names = tuple(named(shapes))

    def init(key: jax.Array, width: jax.Array, init_scale: jax.Array, *, law: Any, basis: Any = None) -> Any:
        del width, law, basis
        with jax.enable_x64(False):
            params = module.init(key, jnp.zeros(point.shape, point.dtype))["params"]
        return jax.tree.map(lambda a: init_scale * a if a.ndim > 1 else a, params)

    def rest(params: Any, x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, x.shape[-1])
        apply: Any = functools.partial(module.apply, {"params": params})
        with jax.enable_x64(x.dtype == jnp.float64):  # arrays that it makes itself are of the type of its points
            outputs = jax.vmap(lambda row: jnp.reshape(apply(row), ()))(rows)
        return outputs.reshape(x.shape[:-1]).astype(x.dtype)

    def first(params: Any) -> tuple[jax.Array, jax.Array]:
        dtype = jax.tree.leaves(params)[0].dtype
        return jnp.eye(design.ambient_dim, dtype=dtype), jnp.zeros(design.ambient_dim, dtype)

    by_derivatives = autodiff.model(
        init=init,
        first=first,
        with_first_weight=lambda params, weight: params,
        rest=rest,
        trained=lambda init, trainable: names,
        has_frozen_part=False,
    )
    if not _is_chain(design):
        return by_derivatives
    return chain.certified(
        by_derivatives, functools.partial(_entered, design), lambda params: _maps(design, params)[1:]
    )


class _OfDesign(NamedTuple):
    """An affine map of the networks of a design, of arrays of any type."""

    design: Design
    number: int

    def __call__(self, parameters: dict[str, jax.Array], h: jax.Array) -> jax.Array:
        """What comes before the next ReLUs, of activations (..., k)."""
        maps = _split(self.design, h.dtype)
        assert maps
        after = maps[self.number](parameters, h)
        return after[..., 0] if self.number == len(maps) - 1 else after


def _maps(design: Design, params: Any) -> tuple[Partial, ...]:
    """The affine maps of a network, as `rays` tells of them; before the first one there is no ReLU."""
    arrays = named(params)
    maps = _split(design, jax.tree.leaves(params)[0].dtype)
    assert maps
    return tuple(
        Partial(_OfDesign(design, number), {name: arrays[name] for name in sorted(affine_map.parameters())})
        for number, affine_map in enumerate(maps)
    )


def _is_chain(design: Design) -> bool:
    """Whether networks of a design are the same chain in float32, in which flips are searched, and in float64."""
    single, double = (_split(design, jnp.dtype(name)) for name in ("float32", "float64"))
    if single is None or double is None:
        return False
    return [one.parameters() for one in single] == [one.parameters() for one in double]


@functools.lru_cache(maxsize=256)
def _split(design: Design, dtype: Any) -> tuple[AffineMap, ...] | None:
    """The affine maps of networks of a design whose arrays are of a type; None if they are no chain of such."""
    module = instance(design)
    point = jax.ShapeDtypeStruct((design.ambient_dim,), dtype)
    shapes = _shapes_of(design, module, jax.ShapeDtypeStruct(point.shape, jnp.float32))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)

    def output(params: Any, x: jax.Array) -> Any:
        return module.apply({"params": params}, x)

    with jax.enable_x64(dtype == jnp.float64):
        return split(output, params, point)


def _entered(design: Design, params: Any, x: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    begin = _maps(design, params)[0]
    return begin(x), linear_part(begin, basis.T).T, absolute(begin)(jnp.abs(x))


def instance(design: Design) -> linen.Module:
    """The module of a design.

    Raises:
        UserError: if it cannot be made.
    """
    return made(class_of(design.architecture), design)


def made(found: type[linen.Module], design: Design) -> linen.Module:
    """A module of a class, with the width and the depth of a design where it has such fields.

    Raises:
        UserError: if it cannot be made.
    """
    told = {leaf: getattr(design, leaf) for leaf in ASKED if leaf in _fields_of(found)}
    try:
        return found(**told)
    except (Exception, SystemExit) as error:  # whatever the user's code does
        raise UserError(
            f"architecture {design.architecture!r}: cannot be made of {told or 'nothing'}: {_reason(error)}; "
            f"fields but {' and '.join(ASKED)} need defaults"
        ) from None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def unread(name: str) -> tuple[str, ...]:
    """Settings that a class is not told, as it has no field of the name."""
    return tuple(leaf for leaf in ASKED if leaf not in _fields_of(class_of(name)))


def _fields_of(found: type[linen.Module]) -> Any:
    return getattr(found, "__dataclass_fields__", {})


def _shapes_of(design: Design, module: linen.Module, point: Any) -> Any:
    """Shapes of its parameters, once it is sure that it takes a point to a number.

    Raises:
        UserError: if it does not.
    """
    refused = f"architecture {design.architecture!r}: "

    def traced(dtype: Any, variables: Any) -> tuple[Any, Any]:
        x = jax.ShapeDtypeStruct(point.shape, dtype)
        with jax.enable_x64(dtype == jnp.float64):
            variables = variables or jax.eval_shape(module.init, jax.random.key(0), x)
            return variables, jax.eval_shape(module.apply, variables, x)

    try:
        variables, output = traced(jnp.float32, None)
    except (Exception, SystemExit) as error:  # whatever the user's code does
        raise UserError(f"{refused}cannot take a point of shape {point.shape}: {_reason(error)}") from None
    others = sorted(set(variables) - {"params"})
    if others or "params" not in variables:
        held = " and ".join(others) or "no parameters"
        raise UserError(f"{refused}holds {held}; must hold parameters alone, as a function R^d → R does")
    shape, dtype = getattr(output, "shape", None), getattr(output, "dtype", jnp.float32)
    if shape not in ((), (1,)) or not jnp.issubdtype(dtype, jnp.floating):
        told = f"takes a point of shape {point.shape} to {type(output).__name__ if shape is None else shape}"
        told += "" if jnp.issubdtype(dtype, jnp.floating) else f" of {dtype}"
        raise UserError(f"{refused}{told}; must take it to one real number, of shape () or (1,), as R^d → R")
    if wrong := _wrong_parameters(variables["params"]):
        raise UserError(refused + wrong)
    double = {"params": jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float64), variables["params"])}
    try:
        traced(jnp.float64, double)
    except (Exception, SystemExit) as error:
        told = f"cannot take a point of float64, in which networks are measured: {_reason(error)}"
        raise UserError(f"{refused}{told}; leave types of arrays to those of its input") from None
    return variables["params"]


def _wrong_parameters(params: Any) -> str | None:
    """What keeps parameters, of these shapes and types, from being trained and saved by name."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "." in name:
            return f"calls a layer or a parameter {name!r}; names must be without dots"
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return f"holds a parameter {name!r} of {leaf.dtype}; must hold real numbers"
        if not leaf.size:
            return f"holds a parameter {name!r} of shape {leaf.shape}, which is empty"
    return None


def must_fit(design: Design, given: Any, params: Any) -> None:
    """Refuse a class whose networks have not the parameters of some networks, with leading axes before them.

    Raises:
        UserError: naming the first that is wrong.
    """
    if not (isinstance(given, type) and issubclass(given, linen.Module)):
        return  # which `hand_over` refuses
    module = made(given, design)
    expected = named(_shapes_of(design, module, jax.ShapeDtypeStruct((design.ambient_dim,), jnp.float32)))
    found = named(params)
    for name in sorted(expected.keys() | found.keys()):
        theirs, ours = (tree[name].shape if name in tree else None for tree in (expected, found))
        if theirs is None or ours is None or ours[len(ours) - len(theirs) :] != theirs:
            told = f"{given.__name__} has {'none' if theirs is None else f'one of shape {theirs}'}"
            told += f", and these networks {'none' if ours is None else f'have one of shape {ours}'}"
            raise UserError(f"module: parameter {name}: {told}; give the class {design.architecture}")


def _known(design: Design) -> linen.Module | None:
    return instance(design) if is_known(design.architecture) else None


MODULE = Architecture(model, reads=ASKED, pads=False, module=_known)
