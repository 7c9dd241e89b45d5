"""The rules of the layers: who may know whom, and that nothing goes round in a circle.

Imports under TYPE_CHECKING count: what a file has to know to be read is the same, whether it is loaded or not.
"""

import re

import pytest
from import_graph import (
    FILES,
    LAYERS,
    MODULES,
    ROOT,
    allowed_rooms,
    draw_picture,
    find_circles,
    imports_of,
    module_of,
    picture_on_page,
    room_of,
)


def test_the_house_has_at_most_nine_floors_and_every_room_is_on_one():
    assert len(LAYERS) <= 9
    rooms = [room for row in LAYERS for room in row]
    assert sorted(rooms) == sorted({room_of(module) for module in MODULES} - {""})


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_room_knows_one_above_it(file):
    room = room_of(module_of(file))
    if not room:
        return
    wrong = {other for other in imports_of(file) if room_of(other) and room_of(other) not in allowed_rooms(room)}
    assert not wrong, f"{room} may not know {sorted(wrong)}"


def test_no_imports_go_round_in_a_circle():
    circles = find_circles()
    assert not circles, "\n".join(" <-> ".join(sorted(circle)) for circle in circles)


def test_the_picture_of_the_house_is_the_house():
    assert picture_on_page() == draw_picture(), "run: python tests/helpers/import_graph.py --write"


def test_a_gateway_that_runs_never_loads_what_only_a_terminal_needs():
    users = [file for file in FILES if re.search(r"^\s*(from|import) rich\b", file.read_text(), re.MULTILINE)]
    assert [str(file.relative_to(ROOT)) for file in users] == ["proxy/cli/output.py"]
