"""How outputs appear: whole or not at all, in files and folders, under valid names."""
