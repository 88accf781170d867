"""When a GPU test of a young implementation may be left out: where it is not installed, never where it failed."""

from typing import Any

import pytest

from lg.attention.attend import IMPLEMENTATIONS
from lg.attention.impl.proof import Proven


def skip_unless_there(impl: str, q: Any, k: Any, v: Any, tiles: Any) -> None:
    """Skips if the implementation cannot run here at all. At head width 64 it may also have failed its check, which
    has happened (flash-attention issue 2623); elsewhere that is a failure of the test.
    """
    on = IMPLEMENTATIONS[impl]
    if isinstance(on, Proven) and (missing := on.implementation.refusal(q, k, v, tiles)):
        pytest.skip(missing)
    refusal = on.refusal(q, k, v, tiles)
    if refusal:
        assert not isinstance(on, Proven) or (q.shape[3] == 64 and "failed the check" in refusal), refusal
        pytest.skip(refusal)
