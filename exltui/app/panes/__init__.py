"""The panes of the main screen. In a narrow terminal the same widgets are drawers."""
