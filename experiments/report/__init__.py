"""From results to verdicts and pages."""
