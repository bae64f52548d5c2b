"""Every flow of the specification, broken in every place, and in every order."""
