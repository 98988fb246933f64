"""What jsq has for other products: a module, or a package, for each. It needs the package of its product."""
