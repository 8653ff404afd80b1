"""What is fetched by name and checked by digest: evaluators' weights, pipelines, prompts, tables of images."""
