"""What LLVM's vectorizer does not find: sums of eight neighbours at once, and products of small matrices.

Numba compiles these into the loops that call them. Arrays are float32 and contiguous; places in them are
counted in elements, whatever their shape, and not checked.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDE = 8
"""Elements of one vector; a machine whose vectors are shorter takes several for it."""
ROWS, COLUMNS = 6, 2 * WIDE
"""Of a product whose sums stay in registers: 12 of the 16 that AVX2 has."""
VECTOR = ir.VectorType(ir.FloatType(), WIDE)


def combining(matrix):
    """Make the compiled function that combines rows: ``combine(given, at, out, to, count)``.

    Row r of `count` elements, a multiple of eight, is written to ``out[to[r]:]``. It is the sum of the rows
    ``given[at[c]:]`` times ``matrix[r][c]``, which is 1, 0 or -1.
    """

    @intrinsic
    def combine(context, given, at, out, to, count):
        def build(context, builder, signature, values):
            source, target = (_data(context, builder, signature.args[n], values[n]) for n in (0, 2))
            sources, targets = (cgutils.unpack_tuple(builder, values[n]) for n in (1, 3))
            count = values[4]
            steps = cgutils.for_range_slice(builder, count.type(0), count, count.type(WIDE))
            with steps as (i, _):
                seen = [_load(builder, source, builder.add(place, i)) for place in sources]
                for factors, place in zip(matrix, targets, strict=True):
                    terms = sorted(zip(factors, seen, strict=True), key=lambda term: -term[0])
                    total = terms[0][1]
                    for factor, term in terms[1:]:
                        if factor:
                            total = (builder.fadd if factor > 0 else builder.fsub)(total, term)
                    _store(builder, total, target, builder.add(place, i))
            return context.get_dummy_value()

        return types.void(given, at, out, to, count), build

    return combine


@intrinsic
def multiply(context, left, right, out, places, steps, depth, more):
    """Multiply (ROWS, depth) by (depth, COLUMNS) into `out`, or add to it where there is more.

    `places` and `steps` are those of left, right and out: where each begins, and from one row to the next.
    """

    def build(context, builder, signature, values):
        left, right, out = (_data(context, builder, signature.args[n], values[n]) for n in range(3))
        starts, steps = (cgutils.unpack_tuple(builder, values[n]) for n in (3, 4))
        depth, more = values[5:]
        index = depth.type
        kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
        fuse = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{WIDE}f32")

        def at(which, row, column):
            place = builder.add(starts[which], builder.mul(row, steps[which]))
            return builder.add(place, column)

        zero = ir.Constant(VECTOR, [0.0] * WIDE)
        rows, columns = range(ROWS), range(0, COLUMNS, WIDE)
        sums = {(r, c): cgutils.alloca_once(builder, VECTOR) for r in rows for c in columns}
        for one in sums.values():
            builder.store(zero, one)
        with builder.if_then(cgutils.is_true(builder, more)):
            for (r, c), one in sums.items():
                builder.store(_load(builder, out, at(2, index(r), index(c))), one)
        with cgutils.for_range(builder, depth) as loop:
            rights = {c: _load(builder, right, at(1, loop.index, index(c))) for c in columns}
            lefts = [_spread(builder, builder.gep(left, [at(0, index(r), loop.index)])) for r in rows]
            for (r, c), one in sums.items():
                builder.store(builder.call(fuse, [lefts[r], rights[c], builder.load(one)]), one)
        for (r, c), one in sums.items():
            _store(builder, builder.load(one), out, at(2, index(r), index(c)))
        return context.get_dummy_value()

    return types.void(left, right, out, places, steps, depth, more), build


def _data(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def _vector(builder, data, place):
    return builder.bitcast(builder.gep(data, [place]), VECTOR.as_pointer())


def _load(builder, data, place):
    return builder.load(_vector(builder, data, place), align=4)


def _store(builder, value, data, place):
    builder.store(value, _vector(builder, data, place), align=4)


def _spread(builder, element):
    """A vector of one element, repeated."""
    one = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), builder.load(element), ir.IntType(32)(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), WIDE), [0] * WIDE)
    return builder.shuffle_vector(one, one, mask)
