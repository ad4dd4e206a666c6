from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stepguard.rules.document import DocumentError, Entries, Items, Node, Scalar, decode, parse


def root(text: str) -> Node:
    document = parse(text, "f.yaml")
    assert document.problems == ()
    return document.root


def value_of(text: str) -> Scalar:
    node = root(text)
    assert isinstance(node, Entries)
    value = node.entries["when"][1]
    assert isinstance(value, Scalar)
    return value


SCALARS = [
    "when: loss > 5 and XX > 3\n",
    "when:    loss > 5 and XX > 3   # why\n",
    "when: 'loss > 5 and XX > 3'\n",
    'when: "loss > 5 and XX > 3"\n',
    "when: >\n  loss > 5\n  and XX > 3\n",
    "when: >-\n\n  loss > 5 and\n\n  XX > 3\n",
    "when: |\n    loss > 5\n\n    and XX > 3\n",
    "when: |2  # why\n    loss > 5\n    and XX > 3\n",
    "when: loss > 5\n  and\n  XX > 3\n",
    "when: 'loss > 5\n\n  and XX > 3'\n",
    'when: "loss > 5 \\\n  and XX > 3"\n',
    'when: "loss > 5\\n and\\tXX > 3"\n',
    "when: 'it''s XX > 3'\n",
    'when: "\\x6coss \\u003e 5 and \\\\ XX"\n',
    "# ä 𝄞\nwhen: 'ö𝄞 XX'\n",
    "{when: loss > 5 and XX > 3}\n",
]


@pytest.mark.parametrize("loader", [yaml.CSafeLoader, yaml.SafeLoader])
@pytest.mark.parametrize("text", SCALARS)
def test_a_place_inside_a_scalar_is_where_it_stands_in_the_file(
    text: str, loader: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepguard.rules.document._Loader", loader)
    scalar = value_of(text)
    place = scalar.at(scalar.text.index("XX"))
    before = text[: text.index("XX")]
    assert (place.line, place.column) == (before.count("\n") + 1, len(before) - before.rfind("\n"))


def test_a_place_behind_a_scalar_is_its_end() -> None:
    scalar = value_of("when: loss >\n")
    assert scalar.at(len(scalar.text)).column == len("when: loss >") + 1


@pytest.mark.parametrize("text", SCALARS)
def test_scalars_are_the_text_that_yaml_reads(text: str) -> None:
    assert value_of(text).text == yaml.safe_load(text)["when"]


@pytest.mark.parametrize(
    "word", ["1e-8", "010", "1:30", "on", "yes", "null", "~", "0x10", "2001-01-01", ".inf"]
)
def test_nothing_is_guessed(word: str) -> None:
    scalar = value_of(f"when: {word}\n")
    assert (scalar.text, scalar.plain) == (word, True)


def test_a_byte_order_mark_and_foreign_line_ends_are_taken_off() -> None:
    assert decode(b"\xef\xbb\xbfa\r\nb\rc", "f.yaml") == "a\nb\nc"


def test_every_fault_that_leaves_a_document_is_reported() -> None:
    document = parse("a: !!int 1\nb: &x 2\na: 3\n? [c]\n: 4\n", "f.yaml")
    found = [
        f"{each.place.line}:{each.place.column} {each.what.split(' (')[0]}" for each in document.problems
    ]
    assert found == ["1:4 a tag", "2:4 an anchor", "3:1 'a' stands twice", "4:3 a key that is no word"]


def plain(node: Node) -> object:
    """What YAML's base loader makes of it."""
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return {key: plain(value) for key, (_, value) in node.entries.items()}


words = st.text("abc 01.:#'\"-[]{}%@&*!|>\\\n\té", max_size=6)
trees = st.recursive(
    words, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8
)


@given(trees, st.booleans())
def test_what_yaml_writes_is_read_back(tree: object, flow: bool) -> None:
    text = yaml.dump(tree, default_flow_style=flow, default_style='"', allow_unicode=True)
    assert plain(root(text)) == tree


@given(st.text(max_size=60) | st.text("ab:-?[]{},&*!|>'\"%@#\n \t0", max_size=60))
def test_no_text_makes_the_parser_fail(text: str) -> None:
    try:
        document = parse(text, "f.yaml")
    except DocumentError as error:
        assert error.problem.what
    else:
        assert plain(document.root) is not None


@given(st.binary(max_size=60))
def test_no_bytes_make_the_decoder_fail(data: bytes) -> None:
    try:
        assert "\r" not in decode(data, "f.yaml")
    except DocumentError as error:
        assert error.problem.place.line >= 1
