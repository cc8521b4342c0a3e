"""The command line: thin verbs over the rest, and the one place where anything is printed."""
