"""Views for people: models, explanations, the logbook, diagrams."""
