"""Inputs for property tests of content addressing.

Small profiles make DAGs of several levels out of a few hundred bytes.
"""

from __future__ import annotations

from hypothesis import strategies as st

from vision_o3.content.cid import CID, DAG_PB, RAW
from vision_o3.content.profile import ImportProfile

TINY = ImportProfile("tiny", chunk_size=8, width=3)
"""81 leaves of 8 bytes at most."""

profiles = st.builds(
    ImportProfile, st.just("small"), st.integers(1, 9), st.integers(2, 5)
)
cids = st.builds(
    CID, st.sampled_from([RAW, DAG_PB]), st.binary(min_size=32, max_size=32)
)


@st.composite
def profiled_contents(draw: st.DrawFn) -> tuple[ImportProfile, bytes]:
    """A profile, and a file which it can name."""
    profile = draw(profiles)
    return profile, draw(st.binary(max_size=min(profile.max_size, 300)))


@st.composite
def pieces(draw: st.DrawFn, content: bytes) -> list[bytes]:
    """A content cut anywhere, also into empty pieces."""
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=12)))
    starts, ends = [0, *cuts], [*cuts, len(content)]
    return [content[starts[at] : ends[at]] for at in range(len(starts))]
