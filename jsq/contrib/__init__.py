"""Support for other products: each has a module or a package here, which needs the package of the product."""
