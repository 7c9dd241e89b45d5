"""JSON that is written again for a vendor or an app."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from proxy.util.json_bytes import json_bytes

ROOT = Path(__file__).parents[3] / "proxy" / "egress"
ANY = st.text(st.one_of(st.characters(), st.characters(categories=["Cs"])))


@given(st.recursive(ANY, lambda inner: st.lists(inner) | st.dictionaries(ANY, inner)))
def test_what_is_written_reads_as_what_it_was(value):
    read = json.loads(json.dumps(value))  # two halves that meet are one letter
    assert json.loads(json_bytes(read)) == read


def test_nobody_else_on_the_way_out_writes_json():
    writers = [path.name for path in ROOT.rglob("*.py") if "json.dumps(" in path.read_text()]
    assert writers == []
