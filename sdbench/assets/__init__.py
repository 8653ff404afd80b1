"""What comes from outside by name and digest: evaluators' weights, pipelines, prompts, tables of pictures."""
