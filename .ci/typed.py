"""What mypy must find in the installed wheel: no fault in the first call, and a wrong type in the second."""

import subspace_adv as sa

print(sa.run(sa.Sweep.from_toml("sweep.toml"), out="results").sizes)
sa.load_networks(1)  # type: ignore[arg-type]
