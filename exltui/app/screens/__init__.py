"""The main screen, and the screens that cover it: the loader, help and one-line questions."""
