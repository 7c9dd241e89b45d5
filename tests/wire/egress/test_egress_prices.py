"""The price table, as the way out shows it."""

import time

from egress_gateway import Vendor, egress_gateway, says

from proxy.egress.billing.pricing.table import table_age


async def test_the_price_tables_age_is_in_the_first_scrape(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says())) as out:
        [line] = [one for one in (await out.text()).splitlines() if one.startswith("outrigger_price_table_age_seconds")]
        assert abs(float(line.split()[1]) - table_age(time.time())) < 60
