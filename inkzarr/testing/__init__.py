"""What tests and the demo stand on: a scroll with ink of known place, and hypothesis strategies.

Without torch. `synthetic` puts together `spiral` (where the sheet runs), `texture` (what a scanner
sees of it) and `letters` (where the ink is); `strategies` alone needs hypothesis.
"""

from inkzarr.testing.synthetic import SyntheticScroll

__all__ = ["SyntheticScroll"]
