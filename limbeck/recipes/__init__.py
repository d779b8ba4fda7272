"""One short file per published system, in a folder per family; `limbeck.catalogue` finds them."""
