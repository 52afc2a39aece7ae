"""Posteriors in the shape of posteriordb's, held to references that our engine had no part in.

    python -m studies.posteriors.reference NAME     makes a reference anew (all without a name)
    make reproduce NAME=posteriors                  the chains, on both backends, and the table

`data` has the numbers, `models` each posterior declared once, `native` the same as NumPyro
programs, `quadrature` and `weighted` as densities in numpy, `reference` what is kept of these two
in reference.json, `stan_chains` runs Stan's NUTS (by `stan_worker`, in a Python that has PyStan) on
the programs of `stan/` and keeps what it gave in stan.json.

Source: Magnusson, Torgander, Bürkner, Zhang, Carpenter & Vehtari 2024, "posteriordb",
arXiv:2407.04967, whose acceptance is ours: means within 0.1 standard deviations.
"""
