"""The four verbs, a file each: `fit`, `infer`, `generate`, `evaluate`; to users `pg.fit`..."""
