"""A package, so that no installed wheel with a package of this name hides it."""
