"""Small widgets that several panes or screens share."""
