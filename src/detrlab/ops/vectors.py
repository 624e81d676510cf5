"""Fixed-width vectors for Numba kernels, one LLVM instruction each.

LLVM does not vectorise the scalar loops of deformable attention, because every access might alias
another. Kernels written with these intrinsics are 3 to 4 times as fast. The number of lanes is
known when a kernel is compiled; LLVM maps it to the registers of the machine.

Arithmetic between vectors, or a vector and a number, is written with the ordinary operators.
Sums may be reassociated and contracted (``a * b + c`` in one rounding); NaN and infinity keep
their meaning.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, overload, register_model

intrinsic: Any = extending.intrinsic  # its type annotations are wrong: it removes an argument

_FAST = ("contract", "reassoc", "nsz")
_INDEX = ir.IntType(32)


class Vector(types.Type):
    """The type of ``lanes`` numbers of one dtype held in registers."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype = dtype
        self.lanes = lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        element = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.lanes))


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """The chosen lanes of ``a`` followed by ``b``."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INDEX, len(lanes)), lanes))


def _undefined(kind: Any) -> Any:
    return ir.Constant(kind, ir.Undefined)


def _splat(builder: Any, number: Any, kind: Any) -> Any:
    """A vector whose lanes all hold ``number``."""
    one = builder.insert_element(_undefined(kind), number, ir.Constant(_INDEX, 0))
    return _shuffle(builder, one, _undefined(kind), [0] * kind.count)


def _constant(kind: Any, number: float) -> Any:
    return ir.Constant(kind, [number] * kind.count)


def _spread(context: Any, builder: Any, sig: Any, args: Any, vector: Vector) -> list[Any]:
    """All arguments as vectors: numbers fill every lane."""
    kind = context.get_value_type(vector)
    return [
        value if isinstance(given, Vector) else _splat(builder, value, kind)
        for value, given in zip(args, sig.args, strict=True)
    ]


def _like(given: Any, vector: Vector) -> Any:
    """The argument type to ask for: the vector itself, or a number of its dtype."""
    return given if isinstance(given, Vector) else vector.dtype


def _math(builder: Any, name: str, kind: Any, args: list[Any]) -> Any:
    suffix = f"v{kind.count}f{32 if isinstance(kind.element, ir.FloatType) else 64}"
    signature = ir.FunctionType(kind, [kind] * len(args))
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.{suffix}")
    return builder.call(function, args)


# --- memory -------------------------------------------------------------------------------


def _place(context: Any, builder: Any, sig: Any, args: Any, kind: Any) -> Any:
    """The address of element ``args[1]`` of the array ``args[0]``, as a pointer to ``kind``."""
    array = context.make_array(sig.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), kind.as_pointer())


@intrinsic(prefer_literal=True)
def load(_typing: Any, array: Any, index: Any, lanes: Any) -> Any:  # noqa: ARG001
    """``lanes`` consecutive elements of a flat array, from ``index`` on."""
    vector = Vector(array.dtype, lanes.literal_value)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_value_type(vector)
        place = _place(context, builder, sig, args, kind)
        return builder.load(place, align=context.get_abi_sizeof(kind.element))

    return vector(array, types.intp, lanes), generate


@intrinsic
def store(_typing: Any, array: Any, index: Any, vector: Any) -> Any:  # noqa: ARG001
    """Write a vector to consecutive elements of a flat array, from ``index`` on."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_value_type(vector)
        place = _place(context, builder, sig, args, kind)
        builder.store(args[2], place, align=context.get_abi_sizeof(kind.element))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic(prefer_literal=True)
def load_interleaved(_typing: Any, array: Any, index: Any, lanes: Any, parts: Any) -> Any:  # noqa: ARG001
    """``parts`` vectors stored element by element in turn, such as (x, y) pairs."""
    count, turns = lanes.literal_value, parts.literal_value
    vector = Vector(array.dtype, count)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        element = context.get_value_type(vector).element
        kind = ir.VectorType(element, count * turns)
        place = _place(context, builder, sig, args, kind)
        both = builder.load(place, align=context.get_abi_sizeof(element))
        vectors = [
            _shuffle(builder, both, _undefined(kind), list(range(turn, count * turns, turns)))
            for turn in range(turns)
        ]
        return context.make_tuple(builder, sig.return_type, vectors)

    return types.UniTuple(vector, turns)(array, types.intp, lanes, parts), generate


@intrinsic
def store_pairs(_typing: Any, array: Any, index: Any, first: Any, second: Any) -> Any:  # noqa: ARG001
    """Write two vectors in turn, as (x, y) pairs."""
    lanes = first.lanes

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        element = context.get_value_type(first).element
        place = _place(context, builder, sig, args, ir.VectorType(element, 2 * lanes))
        turns = [lane for pair in zip(range(lanes), range(lanes, 2 * lanes)) for lane in pair]  # noqa: B905
        pairs = _shuffle(builder, args[2], args[3], turns)
        builder.store(pairs, place, align=context.get_abi_sizeof(element))
        return context.get_dummy_value()

    return types.void(array, types.intp, first, first), generate


@intrinsic
def prefetch(_typing: Any, array: Any, index: Any) -> Any:  # noqa: ARG001
    """Prefetch the cache line of an element; any index is safe."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        byte = ir.IntType(8)
        signature = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), _INDEX, _INDEX, _INDEX])
        function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
        place = _place(context, builder, sig, args, byte)
        builder.call(function, [place, _INDEX(0), _INDEX(3), _INDEX(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic(prefer_literal=True)
def zeros(_typing: Any, array: Any, lanes: Any) -> Any:
    """A vector of zeros of the array's dtype."""
    vector = Vector(array.dtype, lanes.literal_value)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return ir.Constant(context.get_value_type(vector), None)

    return vector(array, lanes), generate


# --- arithmetic ---------------------------------------------------------------------------


def _define_operator(symbol: Callable[..., Any], float_name: str, int_name: str) -> None:
    @intrinsic
    def apply(_typing: Any, a: Any, b: Any) -> Any:
        vector = a if isinstance(a, Vector) else b

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            x, y = _spread(context, builder, sig, args, vector)
            if isinstance(vector.dtype, types.Float):
                return getattr(builder, float_name)(x, y, flags=_FAST)
            return getattr(builder, int_name)(x, y)

        return vector(_like(a, vector), _like(b, vector)), generate

    # Numba wants the signatures of both functions equal, annotations included.
    def compute(a: Any, b: Any) -> Any:
        return apply(a, b)

    @overload(symbol)
    def _operator(a: Any, b: Any) -> Any:
        return compute if isinstance(a, Vector) or isinstance(b, Vector) else None


_define_operator(operator.add, "fadd", "add")
_define_operator(operator.sub, "fsub", "sub")
_define_operator(operator.mul, "fmul", "mul")


@intrinsic
def multiply_add(_typing: Any, total: Any, factor: Any, vector: Any) -> Any:  # noqa: ARG001
    """``total + factor * vector``, the factor a number."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        base, spread, rows = _spread(context, builder, sig, args, vector)
        product = builder.fmul(spread, rows, flags=_FAST)
        return builder.fadd(base, product, flags=_FAST)

    return vector(vector, vector.dtype, vector), generate


@intrinsic
def floor(_typing: Any, vector: Any) -> Any:
    """Each lane rounded down."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return _math(builder, "floor", context.get_value_type(vector), [args[0]])

    return vector(vector), generate


@intrinsic
def clamp(_typing: Any, vector: Any, low: Any, high: Any) -> Any:
    """Each lane within [low, high]; NaN becomes ``low``, so that the result can be an index."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, least, most = _spread(context, builder, sig, args, vector)
        x = builder.select(builder.fcmp_ordered(">", x, least), x, least)
        return builder.select(builder.fcmp_ordered("<", x, most), x, most)

    return vector(vector, _like(low, vector), _like(high, vector)), generate


@intrinsic
def where_within(_typing: Any, vector: Any, low: Any, high: Any, value: Any) -> Any:
    """``value`` in lanes where ``low <= vector <= high`` or the lane is NaN, else 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, least, most, inside = _spread(context, builder, sig, args, vector)
        below = builder.fcmp_ordered("<", x, least)
        above = builder.fcmp_ordered(">", x, most)
        return builder.select(builder.or_(below, above), _constant(x.type, 0.0), inside)

    given = (vector, _like(low, vector), _like(high, vector), _like(value, vector))
    return vector(*given), generate


@intrinsic
def to_int(_typing: Any, vector: Any) -> Any:
    """Lanes as int32, rounded toward zero; they must be finite."""
    result = Vector(types.int32, vector.lanes)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.fptosi(args[0], context.get_value_type(result))

    return result(vector), generate


@intrinsic
def exp(_typing: Any, vector: Any) -> Any:
    """The exponential of each lane, for lanes up to 0; NaN stays NaN.

    ``x = n ln 2 + r`` with integer n and ``|r| <= ln 2 / 2``; the Taylor series of ``e**r`` is
    then exact to the last bit but one after a few terms, and ``2**n`` is written into the
    exponent. What would be denormal becomes the smallest normal number.
    """
    double = vector.dtype == types.float64
    integer = ir.IntType(64 if double else 32)
    mantissa, bias, terms = (52, 1023, 13) if double else (23, 127, 7)
    # ln 2 in two parts, the first with trailing zeros so that n times it is exact (fdlibm, Cephes).
    high, low = (
        (6.93147180369123816490e-01, 1.90821492927058770002e-10)
        if double
        else (0.693359375, -2.12194440054690583e-4)
    )
    least = -708.0 if double else -87.0
    shift_to_integer = 1.5 * 2.0**mantissa  # its sum with n holds n in the lowest bits

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        kind = context.get_value_type(vector)
        integers = ir.VectorType(integer, kind.count)
        fused = ("contract",)  # reassociation would merge the two parts of ln 2
        x = args[0]
        floor_ = _constant(kind, least)
        x = builder.select(builder.fcmp_ordered("<", x, floor_), floor_, x)
        scaled = builder.fmul(x, _constant(kind, 1 / math.log(2)))
        shifted = builder.fadd(scaled, _constant(kind, shift_to_integer))
        n = builder.fsub(shifted, _constant(kind, shift_to_integer))
        r = builder.fsub(x, builder.fmul(n, _constant(kind, high), flags=fused), flags=fused)
        r = builder.fsub(r, builder.fmul(n, _constant(kind, low), flags=fused), flags=fused)
        series = _constant(kind, 1 / math.factorial(terms))
        for term in reversed(range(terms)):
            product = builder.fmul(series, r, flags=fused)
            coefficient = _constant(kind, 1 / math.factorial(term))
            series = builder.fadd(product, coefficient, flags=fused)
        exponent = builder.add(builder.bitcast(shifted, integers), _constant(integers, bias))
        power = builder.shl(exponent, _constant(integers, mantissa))
        return builder.fmul(series, builder.bitcast(power, kind))

    return vector(vector), generate


# --- over the lanes -----------------------------------------------------------------------


def _halves(width: int, parts: int) -> tuple[list[int], list[int]]:
    """Lanes of the lower and the upper half of each of ``parts`` runs of ``width`` lanes."""
    half = width // 2
    low = [part * width + lane for part in range(parts) for lane in range(half)]
    return low, [lane + half for lane in low]


def _widen(builder: Any, value: Any, filler: float) -> tuple[Any, int]:
    """The vector lengthened with ``filler`` to a power of two, and that length."""
    lanes = value.type.count
    width = 1 << (lanes - 1).bit_length()
    if width == lanes:
        return value, width
    picks = list(range(lanes)) + [lanes] * (width - lanes)
    return _shuffle(builder, value, _constant(value.type, filler), picks), width


def _fold(builder: Any, value: Any, width: int, join: Callable[[Any, Any], Any]) -> Any:
    """Join the lanes of each run of ``width`` lanes by halves."""
    while width > 1:
        low, high = _halves(width, value.type.count // width)
        nothing = _undefined(value.type)
        value = join(
            _shuffle(builder, value, nothing, low), _shuffle(builder, value, nothing, high)
        )
        width //= 2
    return value


@intrinsic
def sum_lanes(_typing: Any, vector: Any) -> Any:
    """The sum of all lanes, a number."""

    def generate(_context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        value, width = _widen(builder, args[0], 0.0)
        value = _fold(builder, value, width, lambda a, b: builder.fadd(a, b, flags=_FAST))
        return builder.extract_element(value, _INDEX(0))

    return vector.dtype(vector), generate


@intrinsic
def max_lanes(_typing: Any, vector: Any) -> Any:
    """The greatest lane, a number; NaN may be ignored."""

    def generate(_context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        def greater(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        value, width = _widen(builder, args[0], -math.inf)
        value = _fold(builder, value, width, greater)
        return builder.extract_element(value, _INDEX(0))

    return vector.dtype(vector), generate


@intrinsic
def four_dots(_typing: Any, with_: Any, a: Any, b: Any, c: Any, d: Any) -> Any:  # noqa: ARG001
    """The scalar products of ``with_`` with four vectors, as a vector of four.

    Adding up four at a time halves the shuffles that four separate sums would need.
    """
    result = Vector(with_.dtype, 4)

    def generate(_context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        def add(x: Any, y: Any) -> Any:
            return builder.fadd(x, y, flags=_FAST)

        products = [
            _widen(builder, builder.fmul(args[0], rows, flags=_FAST), 0.0) for rows in args[1:]
        ]
        vectors, width = [value for value, _ in products], products[0][1]
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            if width == 1:
                every = list(range(2 * vectors[0].type.count))
                vectors = [_shuffle(builder, x, y, every) for x, y in pairs]
                continue
            low, high = _halves(width, 2 * vectors[0].type.count // width)
            vectors = [
                add(_shuffle(builder, x, y, low), _shuffle(builder, x, y, high)) for x, y in pairs
            ]
            width //= 2
        return _fold(builder, vectors[0], width, add)

    return result(with_, with_, with_, with_, with_), generate


# --- missing in Numba ---------------------------------------------------------------------


@intrinsic
def take_ticket(_typing: Any, array: Any) -> Any:
    """Element 0 of an int64 array, increased by one atomically."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(array), generate


@intrinsic
def pointer(_typing: Any, address: Any) -> Any:
    """An integer address as a pointer for ``numba.carray``."""

    def generate(_context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate
