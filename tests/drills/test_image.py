"""What `docker history` says of an image, counted."""

from __future__ import annotations

import pytest

from kind import bytes_over_base

BASE = """0 CMD ["python3"]
38000000 RUN /bin/sh -c set -eux; apt-get update
0 ENV PATH=/usr/local/bin:/usr/local/sbin
78600000 # debian.sh --arch 'amd64' out/ 'trixie'
"""
BUILDKIT = """0 LABEL org.opencontainers.image.title=fencekv
0 ENV PATH=/opt/fencekv/bin:/usr/local/bin
4096 RUN /bin/sh -c install -d -o 65532 -g 65532 /data # buildkit
142000000 COPY /opt/fencekv /opt/fencekv # buildkit
"""
CLASSIC = """0 /bin/sh -c #(nop)  ENV PATH=/opt/fencekv/bin:/usr/local/bin
4096 /bin/sh -c install -d -o 65532 -g 65532 /data
142000000 /bin/sh -c #(nop) COPY dir:0a1b in /opt/fencekv
"""


@pytest.mark.parametrize("ours", [BUILDKIT, CLASSIC], ids=["buildkit", "classic"])
def test_what_came_before_our_first_layer_is_the_base(ours: str) -> None:
    assert bytes_over_base(ours + BASE) == 142_004_096


def test_an_image_of_somebody_elses_has_no_size_over_its_base() -> None:
    with pytest.raises(AssertionError, match="no layer"):
        bytes_over_base(BASE)
