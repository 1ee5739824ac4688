"""What a model looks at: attribution, scores of explanations, figures, and `Model`."""
