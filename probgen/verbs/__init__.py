"""The four verbs, a file each: `fit`, `infer`, `generate`, `evaluate`. Users meet them as `pg.fit`..."""
