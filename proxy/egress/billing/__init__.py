"""What calls out cost: prices, estimates, caps, and one bill a call. Money is whole nano-dollars (1e-9 $)."""
