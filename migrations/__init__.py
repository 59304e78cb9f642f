"""Data migrations: a catalogue that comes with the release, and how it is judged, run and taken back."""
