"""A whole run: from what a user asked for to a plan, its training and what it leaves behind."""
