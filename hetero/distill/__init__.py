"""``hetero distill``: a drafter for a target that has no small sibling."""
