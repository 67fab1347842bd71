"""Methods that learn from pairs."""

CONFLICTS = {
    ("loss", "d3s.selection"): "the loss needs the log-probability of whole responses, the selection drops tokens of "
    "them: keep another selection"
}
"""What no loss of whole responses goes with."""
