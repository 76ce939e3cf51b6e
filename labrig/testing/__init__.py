"""For authors of drivers, plans and models: a pytest plugin with mock rigs, and the contract that drivers keep."""
