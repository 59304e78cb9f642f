"""How MariaDB makes a change, the cheapest first; and what is allowed meanwhile."""

from __future__ import annotations

from typing import Final

#: ALGORITHM=INSTANT; NOCOPY or INPLACE that does not touch the rows; INPLACE that writes all rows anew; the same two
#: but with LOCK=SHARED; COPY with LOCK=SHARED.
INSTANT: Final = 0
NOCOPY: Final = 1
REBUILD: Final = 2
SHARED: Final = 3
COPY: Final = 4

#: A level and the reason for it.
Found = tuple[int, str]
