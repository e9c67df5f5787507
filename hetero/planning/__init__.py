"""From settings to a plan: what there is, what it is worth, who goes where."""
