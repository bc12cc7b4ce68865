"""Networks from a backbone's feature maps to a pyramid of equal width."""
