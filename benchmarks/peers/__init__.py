"""
The package against what people would use instead, at equal compute; see docs/reports/2026-11-peers.md.

- `settings`: what all rows on one data set share, sizes of networks included.
- `row`: what a row must answer: its phases of training, and how it draws.
- `ours`, `latent_priors`, `code_priors`, `systems`: the rows, which `rows` lists.
- `training`: the one loop that trains every row, for seconds of CPU time.
- `measure`: figures of samples, and the search for sampling settings.
- `results`: the folder of a row; what is finished isn't done again.
- `report`: tables and sheets.
"""
