"""How fast scenes are drawn on one core: `python benchmarks/scenes.py`. Target: at least 500 a second at 64 px."""

import time

from vlsae.world import scenes

if __name__ == "__main__":
    for resolution, n in ((64, 4000), (224, 400)):
        drawn = scenes(n, seed=0, resolution=resolution)
        for label in ("first pass, silhouettes drawn", "second pass, silhouettes cached"):
            start = time.perf_counter()
            for scene in drawn:
                _ = scene.pixels
            print(f"{resolution:4d} px: {n / (time.perf_counter() - start):7.0f} scenes/s on one core ({label})")
