"""What people are shown: models, explanations, the logbook, diagrams."""
