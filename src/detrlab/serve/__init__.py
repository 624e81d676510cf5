"""A detector as a web service: a page for people, JSON for programs. Needs ``detrlab[serve]``."""
