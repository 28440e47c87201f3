"""Programs that one starts by hand."""
