"""Whatever text comes in, a cleaned caption is clean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.core.captions import PROFILES, clean_caption, says_something

texts = st.text(max_size=80) | st.lists(
    st.sampled_from(
        ["a cat", "&amp;", "<b>", "</b>", "http://x.org/a", "  ", "\u200b", "\ufeff", "—", "%20", "#1", "\n"]
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("profile", sorted(set(PROFILES) - {"none"}))
@given(texts)
def test_a_cleaned_caption_has_no_space_at_its_ends_and_no_line_ends(profile: str, text: str) -> None:
    found = clean_caption(text, profile)
    assert found == found.strip() and "\n" not in found and "\ufeff" not in found
    assert not found or says_something(found) in (True, False)


@given(texts)
def test_cleaning_lightly_again_changes_nothing(text: str) -> None:
    once = clean_caption(text, "light")
    assert clean_caption(once, "light") == once


@given(st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=40))
def test_plain_words_stay_as_they_are(word: str) -> None:
    assert clean_caption(word, "light") == word and says_something(word)
