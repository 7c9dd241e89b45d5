"""A gateway killed under load, a hundred times: what the ledger has afterwards, beside what was served.

Takes about five minutes, so it is no part of `make bench`: `make bench PART=bench_crash`.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from kill_under_load import crash_and_reconcile

KILLS = int(sys.argv[1]) if len(sys.argv) > 1 else 100


async def main() -> None:
    with tempfile.TemporaryDirectory() as tmp:
        found = await crash_and_reconcile(Path(tmp), kills=KILLS)
    print(f"kills under load                       {found.kills}")
    print(f"answers served to the callers          {found.served:,}")
    print(
        f"rows in the ledger                     {found.rows:,}, of which {found.open_rows} open at their reservation"
    )
    print(f"served and without a row               {found.lost}")
    print(f"  older than a second and a half       {found.older_lost}")
    print(f"under way for longer than that, no row {found.unrecorded}")
    print(f"rows twice                             {found.doubled}")
    print(f"ledger ÷ price of the rows' answers    {found.cost / found.least:.4f}")


asyncio.run(main())
