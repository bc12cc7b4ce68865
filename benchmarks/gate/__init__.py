"""How often the gate is wrong, and how often what users do today is."""
