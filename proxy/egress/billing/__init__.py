"""What calls out cost: prices, estimates, caps, and a charge for each call. Money is whole nano-dollars (1e-9 $)."""
