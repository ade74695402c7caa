"""The screen of `babysit watch`. Only this package imports Textual."""
