"""Training of the learned codecs: one loop for all, and one objective per codec.

    photographs --data.CropDataset--> batch --Objective--> {term: loss} --loop.train_stage--> weights --Objective.export--> files

An objective says what is trained on which loss; it is a subclass of `objective.Objective` under an entry point of the group
`icmbench.training`. A recipe is a YAML file that names an objective, its options, rate points, photographs and stages;
`icmbench train RECIPE.yaml` runs it. To add a recipe, write the objective if none fits, and put the YAML file into `recipes/`; its
first comment line is what `icmbench list recipes` shows.
"""
