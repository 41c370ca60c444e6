"""What the main process decides, alone and with another process."""

from __future__ import annotations

import pytest

from nlpkd.utils.processes import decided_by_main_process


def test_a_single_process_decides_for_itself():
    assert decided_by_main_process(lambda: {"depth": 3}) == {"depth": 3}
    with pytest.raises(KeyError, match="nothing fits"):
        decided_by_main_process(lambda: {}["nothing fits"])
