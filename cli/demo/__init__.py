"""``perdure demo``: real work on real files, through a crash, and counted again."""
