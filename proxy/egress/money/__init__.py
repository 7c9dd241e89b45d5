"""Money: what calls cost, by the vendors' prices and the policy's, and what they will cost."""

from proxy.egress.money.estimate import Estimator, text_bytes_of
from proxy.egress.money.table import table_age, table_date, table_version
from proxy.egress.money.tariff import NOTHING, Cost, Tariffs

__all__ = ["NOTHING", "Cost", "Estimator", "Tariffs", "table_age", "table_date", "table_version", "text_bytes_of"]
