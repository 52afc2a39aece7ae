"""Where a model meets its judges: statistics on results, tables, figures."""
