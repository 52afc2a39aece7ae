"""Every declaration refuses a wrong value where it is written: by name, in words, at once.

`REGISTRY` in `declared_cases` holds a valid instance of each declaration; one that is forgotten is
named. For each field in turn it is given each value of `WRONG`; the outcome is a DeclarationError
that names the field, or an acceptance that `rightly` lists. Declarations know no framework, so
neither do these tests.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import typing

import numpy as np
import pytest
from declared_cases import FUNCTIONS, REGISTRY, RESULTS, right_of, rightly

import probgen
from probgen.errors import DataError, DeclarationError, ProbgenError, ShapeError, UnknownName
from probgen.language.declared import argument
from probgen.records import codec

WRONG = {
    "none": None, "text": "wrong", "true": True, "nan": float("nan"), "infinity": float("inf"),
    "negative": -1, "negative fraction": -0.5, "fraction": 2.5, "zero": 0, "empty": (),
    "huge count": 10**12, "huge": 1e300, "beyond floats": 10**400, "bytes": b"\x00",
    "object": object(), "array": np.ones((2, 2)), "list of none": [None], "dict": {"a": object()},
}  # fmt: skip


def frozen():
    """Every public frozen dataclass of probgen outside its backends, found by importing it all."""
    found = set()
    for room in ("probgen", "probgen.models", "probgen.inference", "probgen.evaluation"):
        home = importlib.import_module(room)
        for module in pkgutil.walk_packages(home.__path__, f"{room}."):
            if module.name.startswith("probgen.backends"):
                continue
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and dataclasses.is_dataclass(value):
                    own = value.__module__.startswith("probgen") and value.__name__[0] != "_"
                    if own and value.__dataclass_params__.frozen:
                        found.add(value)
    return found


def is_declaration(cls):
    return "__checked_fields__" in vars(cls)


def given(owner):
    """Its arguments by name."""
    return {f.name: getattr(owner, f.name) for f in dataclasses.fields(owner) if f.init}


def test_each_public_declaration_is_in_the_registry():
    known = {type(owner) for owner in REGISTRY}
    assert not sorted(c.__qualname__ for c in filter(is_declaration, frozen()) if c not in known)


def of_data(field):
    """What else is raised by a field that takes data, by the rules of data."""
    return (DataError, ShapeError) if field.type.startswith(("ReferenceData", "np.nd")) else ()


CASES = [
    pytest.param(owner, f, id=f"{type(owner).__name__}-{f.name}")
    for owner in REGISTRY
    for f in dataclasses.fields(owner)
    if f.init
]


@pytest.mark.parametrize("owner, field", CASES)
def test_a_wrong_value_is_refused_where_it_is_declared(owner, field):
    values = {**WRONG, "class": type(owner)}
    accepted = set()
    for label, wrong in values.items():
        try:
            type(owner)(**{**given(owner), field.name: wrong})
        except (DeclarationError, *of_data(field)) as error:
            told = str(error)
            assert field.name in told and "expected" in told, (label, told)
            assert len(told) < 1500, (label, told)
        else:
            accepted.add(label)
    right = rightly(owner, field)
    assert right is None or accepted == right, f"annotated {field.type!r}"


@pytest.mark.parametrize("owner", REGISTRY, ids=lambda owner: type(owner).__name__)
def test_a_valid_declaration_is_its_own_copy(owner):
    """What the check keeps passes the check, and is equal: `replace`, and JSON where it applies."""
    again = dataclasses.replace(owner)
    assert repr(again) == repr(owner)
    if type(owner).__eq__ is not object.__eq__:
        assert again == owner
    try:
        data = codec.encode(owner)
    except codec.NotADeclaration:
        return
    assert codec.encode(codec.decode(data)) == data


def test_numbers_of_numpy_and_lists_become_pythons_own():
    net = probgen.nets.MLP([np.int64(3), 4], out=np.int32(2), out_scale=1, heads=["a"])
    assert net == probgen.nets.MLP((3, 4), out=2, out_scale=1.0, heads=("a",))
    assert hash(net) == hash(probgen.nets.MLP((3, 4), out=2, out_scale=1.0, heads=("a",)))
    assert {type(n) for n in (*net.hidden, net.out)} == {int} and type(net.out_scale) is float


def test_arguments_that_do_not_fit_are_refused_in_words():
    with pytest.raises(UnknownName, match="got an argument 'hiden'.*did you mean 'hidden'"):
        probgen.nets.MLP(hiden=(3,))
    with pytest.raises(DeclarationError, match="Dense: missing .*'out', expected Dense"):
        probgen.nets.Dense()
    with pytest.raises(DeclarationError, match="Dense: .*positional arguments.*expected Dense"):
        probgen.nets.Dense(1, True, 1.0, 4)


def test_a_type_error_of_ones_own_is_not_taken_for_a_wrong_argument():
    @probgen.language.declared.declaration
    class Broken:
        a: int = 1

        def __post_init__(self):
            raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        Broken()


def test_a_subclass_of_ones_own_need_not_be_a_declaration():
    @dataclasses.dataclass(frozen=True)
    class Mine(probgen.nets.Dense):
        more: object = None

    assert Mine(3, more="anything").more == "anything"
    with pytest.raises(DeclarationError, match="Mine: got out=-1"):
        Mine(-1)


def test_each_frozen_dataclass_is_a_declaration_or_a_result():
    """A new one joins the rule, or is said to be what functions return."""
    assert {cls.__name__ for cls in frozen() if not is_declaration(cls)} == RESULTS


# ---- functions -----------------------------------------------------------------------------------

ROOMS = {room: importlib.import_module(f"probgen.evaluation.{room}") for room in FUNCTIONS}
ELSEWHERE = {"seed", "backend"}  # `check_seed` and `backends.resolve`
ARGUMENTS = [
    pytest.param(getattr(ROOMS[room], name), given, parameter, id=f"{name}-{parameter.name}")
    for room, functions in FUNCTIONS.items()
    for name, given in functions.items()
    for parameter in inspect.signature(getattr(ROOMS[room], name)).parameters.values()
    if parameter.name not in ELSEWHERE
]


@pytest.mark.parametrize("room", ROOMS)
def test_each_public_function_is_checked_and_in_the_registry(room):
    public = {n: getattr(ROOMS[room], n) for n in ROOMS[room].__all__}
    functions = {n: f for n, f in public.items() if inspect.isfunction(f)}
    assert set(functions) == set(FUNCTIONS[room])
    assert not [n for n, f in functions.items() if inspect.unwrap(f) is f]


@pytest.mark.parametrize("function, given, parameter", ARGUMENTS)
def test_a_wrong_argument_is_refused_where_it_is_written(function, given, parameter):
    """By its annotation, which lets through what is listed and nothing else; and by the call."""
    name, right = parameter.name, right_of(parameter.annotation)
    values = {**WRONG, "class": str}
    if right is None:  # data, which the rules of data judge
        for label in ("text", "object") if parameter.default is parameter.empty else ():
            with pytest.raises(ProbgenError, match="got .*expected"):
                function(**{**given, name: values[label]})
        return
    hint = typing.get_type_hints(inspect.unwrap(function), include_extras=True)[name]
    refused = {label for label, wrong in values.items() if is_refused(hint, name, wrong)}
    assert set(values) - refused == right, parameter.annotation
    with pytest.raises(DeclarationError, match=f"{name}=.*expected"):
        function(**{**given, name: values[sorted(refused)[0]]})


def is_refused(hint, name, value):
    try:
        argument("here", hint, **{name: value})
    except DeclarationError:
        return True
    return False


def test_one_number_for_a_tuple_and_a_class_for_its_object_are_told_how_to_be_written():
    with pytest.raises(DeclarationError, match=r"got hidden=64, .* of one entry it is \(64,\)"):
        probgen.nets.MLP(64, out=2)
    with pytest.raises(DeclarationError, match=r"the class ELBO, .* call it, ELBO\(...\)"):
        probgen.inference.SVI(probgen.inference.ELBO)
