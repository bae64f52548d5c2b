"""The commands of ``perdure``, as they are typed: a module for each, or for a few alike."""
