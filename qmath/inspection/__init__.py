"""Reports on a model for people: verdict, tables, warnings and a page."""
