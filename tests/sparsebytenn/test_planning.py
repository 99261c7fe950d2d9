"""Where things lie in the arena: nothing in the way of what is held with it, little more than must be held at once."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from lab.sparsebytenn import packed, planning, proof, records
from lab.sparsebytenn.planning import Block

from .native import every_kind
from .test_proof import files, op_at, put, refused, tabled

UNUSED, WORK = 36, 156  # bytes: of the header, and of an operator where its workspace begins
WRITTEN = "nothing wrote before, or that was written over"
TOO_SMALL = 10  # the reason for what leads out of the arena

spans = st.tuples(st.integers(0, 500), st.integers(0, 12), st.integers(0, 6))


@given(st.lists(spans, max_size=25))
def test_what_is_held_at_once_lies_apart_in_an_arena_that_ends_with_it(drawn):
    blocks = [Block(floats, first, first + turns) for floats, first, turns in drawn]
    arena, least = planning.place(blocks), planning.needed(blocks)
    assert least <= arena == max((b.at + -(-b.floats // 16) * 16 for b in blocks), default=0)
    assert all(block.at % 16 == 0 for block in blocks)
    for a, b in combinations(blocks, 2):
        if a.meets(b) and a.floats and b.floats:
            assert a.at + a.floats <= b.at or b.at + b.floats <= a.at
    turns = range(1 + max((b.last for b in blocks), default=0))
    held = [sum(-(-b.floats // 16) * 16 for b in blocks if b.first <= turn <= b.last) for turn in turns]
    assert least == max(held)


def test_what_ends_highest_is_taken_first_where_the_largest_is_not_the_best():
    sizes = [(64, 0, 2), (48, 2, 4), (80, 3, 6), (32, 1, 5), (64, 5, 8), (48, 7, 9)]
    blocks = [Block(*size) for size in sizes]
    assert planning.place(blocks) <= 1.2 * planning.needed(blocks)


def test_no_operator_works_in_a_map_that_is_held_in_its_turn():
    """The workspace in the place of each map in turn: refused where the map is still read, or written in that turn."""
    network = every_kind()
    data = packed.write(network)
    lives = network.lives()
    for i, op in enumerate(network.ops):
        if op.workspace(network.maps[op.x], network.maps[op.y]):
            for m, (first, last) in lives.items():
                moved = put(data, op_at(data, i) + WORK, network.maps[m].at)
                if first <= i <= last and not proof.check(moved) == TOO_SMALL:
                    refused(moved, WRITTEN)


def test_an_operator_of_a_chain_works_in_no_map_of_the_chain():
    """Each in the place of the rows that those before and behind it make, which its turn makes again and again."""
    network = next(n for n in map(packed.read, files()) if sum(m.buffer_rows > 0 for m in n.maps) > 1)
    data = packed.write(network)
    ends = [i for i, op in enumerate(network.ops) if not network.maps[op.y].buffer_rows]
    chain = next(range(a + 1, b + 1) for a, b in zip([-1, *ends], ends, strict=False) if b > a + 2)
    checked = 0
    for i in chain:
        for j in chain:
            moved = put(data, op_at(data, i) + WORK, network.maps[network.ops[j].y].at)
            op = network.ops[i]
            if op.workspace(network.maps[op.x], network.maps[op.y]) and proof.check(moved) != TOO_SMALL:
                refused(moved, WRITTEN)
                checked += 1
    assert checked > 2


def test_a_workspace_lies_in_the_arena():
    data, at, _, _ = tabled("conv")
    arena = records.File(data).head.arena
    for place in (arena, arena - 16, 8, 0xFFFFFFF0):
        refused(put(data, at + WORK, place), "its arena is too small")


def test_header_words_that_this_version_leaves_are_zero():
    refused(put(files()[0], UNUSED, 1), "another version")
    refused(put(files()[0], UNUSED + 4, 1 << 20), "another version")
