"""hasten: the language models you already run, several times faster, the same text."""
