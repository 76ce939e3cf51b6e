"""Reports that a person reads: HTML with plots. Needs the extra `report`."""
