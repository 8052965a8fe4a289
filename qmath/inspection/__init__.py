"""What a person is shown of a model: verdict, tables, warnings and a page."""
