"""Train one network on four points of a plane in space, attack it and certify it.

uv run examples/one_network.py
"""

import numpy as np

import subspace_adv as sa

x = np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
y = np.array([1, -1, 1, -1])
plane = sa.Subspace.axis_aligned(3, 2)

trained = sa.train(x, y, width=20, learning_rate=0.1, seed=0)
print(f"training: {trained.status} after {trained.steps} steps")

found = sa.attack(trained.network, x, subspace=plane, region="off")
print("attack:", found.distance.round(4), "off the plane, along", found.delta[0].round(4))

radii = sa.certify(trained.network, x, subspace=plane, region="off")
print("certificate:", radii.round(4))

# Off the plane is a line here, so both are exact. On the plane they are the two ends of an interval.
interval = sa.bracket(trained.network, x, y, subspace=plane, regions=["on"], attack_steps=8, restarts=4)
lower, upper = interval["distance_on_l2_lower"], interval["distance_on_l2_upper"]
print("bracket on the plane:", lower.values.round(4), upper.values.round(4))
